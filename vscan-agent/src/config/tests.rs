use super::*;
use std::path::Path;

const LEAST: &str =
    "[gateway]\ninterfaces = [\"lan0\", \"wan0\"]\ninside = [\"192.168.0.0/16\", \"fd00::/8\"]\n";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new("vscan.toml"))
}

#[test]
fn least_configuration_has_defaults() {
    let c = parse(LEAST).unwrap();
    assert_eq!(c.ftp.ports, [21.try_into().unwrap()]);
    assert_eq!(c.paths.control, Path::new("/run/vscan/control.sock"));
    assert_eq!(c.gateway.table.get(), 181);
}
