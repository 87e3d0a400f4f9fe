use super::*;
use std::path::Path;

fn config(gateway: &str, rest: &str) -> Config {
    let text = format!(
        "[gateway]\ninterfaces = [\"lan\", \"wan.5\"]\ninside = [\"10.0.0.0/8\", \"10.1.0.0/16\", \"fd00::/8\"]\n{gateway}\n{rest}"
    );
    Config::parse(&text, Path::new("test.toml")).unwrap()
}

fn rules(config: &Config) -> Vec<(&'static str, String)> {
    let marks = Marks::of(&config.gateway.marks);
    let plan = Plan { config, marks, limit_rate: true, guard_local: false };
    Rules::of(plan).0.into_iter().map(|(c, s)| (c, serde_json::to_string(&s).unwrap())).collect()
}

fn of_chain(config: &Config, chain: &str) -> Vec<String> {
    rules(config).into_iter().filter(|(c, _)| *c == chain).map(|(_, r)| r).collect()
}

#[test]
fn networks_are_aggregated_and_families_kept_apart() {
    let inside = of_chain(&config("", ""), "classify");
    let with_inside: Vec<&String> = inside.iter().filter(|r| r.contains("\"inside\"")).collect();
    assert_eq!(with_inside.len(), 2);
    assert!(with_inside[0].contains("10.0.0.0") && !with_inside[0].contains("10.1.0.0"));
    assert!(with_inside[1].contains("fd00::"));
}

#[test]
fn everything_is_a_family_not_an_interval() {
    let exempt = of_chain(&config("exempt = [\"0.0.0.0/0\"]", ""), "classify");
    assert!(exempt.iter().any(|r| r.contains("\"ipv4\"") && r.contains("\"pass\"")));
    assert!(!exempt.iter().any(|r| r.contains("\"0.0.0.0\"")));
}

#[test]
fn the_first_access_rule_comes_first_and_families_do_not_mix() {
    let access = "[[access]]\naction = \"deny\"\nfrom = [\"10.0.0.9\"]\nto = [\"2001:db8::/32\"]\n\
        [[access]]\naction = \"allow\"\nfrom = [\"10.0.0.0/8\"]\nprotocol = [\"smtp\"]\n";
    let inside = of_chain(&config("", access), "inside");
    // an IPv4 client cannot reach an IPv6 server: the first rule can never match
    assert_eq!(inside.len(), 1, "{inside:#?}");
    assert!(inside[0].contains("fresh") && inside[0].contains("25") && !inside[0].contains("21"));
}

#[test]
fn what_depends_on_the_dialogue_is_intercepted() {
    let access = "[[access]]\naction = \"deny\"\nuser = [\"anonymous\"]\n\
        [[access]]\ncommands = [\"read\"]\n[[access]]\naction = \"deny\"\nprotocol = [\"smtp\"]\n";
    let inside = of_chain(&config("", access), "inside");
    assert_eq!(inside.len(), 2, "{inside:#?}");
    assert!(inside[0].contains("fresh") && inside[0].contains("21") && !inside[0].contains("25"));
    assert!(inside[1].contains("return") && inside[1].contains("25"));
}

#[test]
fn of_its_own_connections_only_those_that_were_asked_for() {
    let own = |gateway: &str, rest: &str| -> Vec<String> {
        let rules = of_chain(&config(gateway, rest), "output");
        rules.into_iter().filter(|rule| rule.contains("dport")).collect()
    };
    assert!(own("", "").is_empty());
    let mail = own("", "[smtp]\nown_mail = true");
    assert!(mail[0].contains("25") && !mail[0].contains("21"), "{mail:?}");
    let both = own("intercept_own = true", "");
    assert!(both[0].contains("25") && both[0].contains("21"), "{both:?}");
}

#[test]
fn outside_clients_reach_only_what_is_public() {
    let access = "[[access]]\naction = \"allow\"\n";
    let c = config("publish = [\"10.0.0.25\"]", access);
    let outside = of_chain(&c, "outside");
    assert!(outside.iter().all(|r| r.contains("public") && !r.contains("fresh")), "{outside:#?}");
    let public = of_chain(&c, "public");
    assert!(public[0].contains("dnat") && public[1].contains("10.0.0.25"));
    assert_eq!(public.len(), 2);
}

#[test]
fn closed_refuses_and_open_passes() {
    let down = |mode: &str| of_chain(&config(&format!("on_agent_down = \"{mode}\""), ""), "down");
    assert!(down("open")[0].contains("pass"));
    assert!(down("closed")[0].contains("tcp reset"));
}
