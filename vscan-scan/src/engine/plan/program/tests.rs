//! The hash, and the names of exports, against yara-x's, over programs that are whole, cut, and wrong in every field.

use super::*;
use proptest::prelude::*;
use yara_x::{Compiler, Rules, Scanner};

/// Rules that print what yara-x says.
fn rules() -> &'static Rules {
    static RULES: std::sync::OnceLock<Rules> = std::sync::OnceLock::new();
    RULES.get_or_init(compiled)
}

fn compiled() -> Rules {
    let mut compiler = Compiler::new();
    let text = "import \"pe\" import \"console\" \
        rule hash { condition: console.log(pe.imphash()) and pe.is_pe } \
        rule alpha { condition: pe.exports(\"Alpha\") } rule beta { condition: pe.exports(\"bET\") }";
    compiler.add_source(text).unwrap();
    compiler.build()
}

/// What yara-x says, and what is said here where it is said.
fn both(scanner: &mut Scanner<'_>, said: &std::rc::Rc<std::cell::RefCell<String>>, data: &[u8]) {
    said.borrow_mut().clear();
    let exported: Vec<String> = scanner
        .scan(data)
        .unwrap()
        .matching_rules()
        .map(|rule| rule.identifier().to_owned())
        .collect();
    for (rule, name) in [("alpha", "alpha"), ("beta", "bet")] {
        let may = may_export(data, name.as_bytes());
        assert!(may || exported.iter().all(|r| r != rule), "{rule}: {}", data.escape_ascii());
    }
    let theirs = said.borrow().clone();
    match imphash(data) {
        Imphash::Is(hash) => assert_eq!(hash, theirs, "{}", data.escape_ascii()),
        Imphash::None => assert_eq!("", theirs, "{}", data.escape_ascii()),
        Imphash::Unknown => {}
    }
}

fn compare(inputs: impl IntoIterator<Item = Vec<u8>>) {
    let rules = rules();
    let said = std::rc::Rc::new(std::cell::RefCell::new(String::new()));
    let mut scanner = Scanner::new(rules);
    let log = said.clone();
    scanner.console_log(move |message| *log.borrow_mut() = message);
    for data in inputs {
        both(&mut scanner, &said, &data);
    }
}

/// A program with a section and two libraries.
fn program(wide: bool) -> Vec<u8> {
    let mut data = vec![0u8; 0x800];
    let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(60, &0x80u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x80 + 6, &2u16.to_le_bytes());
    let optional_len: u16 = if wide { 240 } else { 224 };
    put(0x80 + 20, &optional_len.to_le_bytes());
    let optional = 0x98;
    put(optional, &(if wide { 0x20bu16 } else { 0x10b }).to_le_bytes());
    put(optional + 32, &0x1000u32.to_le_bytes());
    put(optional + 36, &0x200u32.to_le_bytes());
    let directory = optional + if wide { 112 } else { 96 };
    put(directory, &0x1300u32.to_le_bytes());
    put(directory + 4, &0x100u32.to_le_bytes());
    put(directory + 8, &0x1000u32.to_le_bytes());
    put(directory + 12, &60u32.to_le_bytes());
    for (i, (address, size, offset)) in
        [(0x1000u32, 0x400u32, 0x400u32), (0x2000, 0x100, 0x200)].iter().enumerate()
    {
        let section = optional + usize::from(optional_len) + 40 * i;
        for (field, value) in [(8, size), (12, address), (16, size), (20, offset)] {
            put(section + field, &value.to_le_bytes());
        }
    }
    // Two descriptors at 0x1000, which lies at 0x400.
    for (i, (names, name, addresses)) in
        [(0x1100u32, 0x1200u32, 0x1140u32), (0, 0x1220, 0x1180)].iter().enumerate()
    {
        let descriptor = 0x400 + 20 * i;
        put(descriptor, &names.to_le_bytes());
        put(descriptor + 12, &name.to_le_bytes());
        put(descriptor + 16, &addresses.to_le_bytes());
    }
    // A table of exports at 0x1300, which lies at 0x700: two functions, with names.
    for (field, value) in [(16, 1u32), (20, 2), (24, 2), (28, 0x1340), (32, 0x1350), (36, 0x1360)] {
        put(0x700 + field, &value.to_le_bytes());
    }
    for (at, value) in [(0x740, 0x1010u32), (0x744, 0x1020), (0x750, 0x1370), (0x754, 0x1380)] {
        put(at, &value.to_le_bytes());
    }
    put(0x760, &[0, 0, 1, 0]);
    put(0x770, b"aLPHA\0");
    put(0x780, b"Bet\0");
    put(0x600, b"KERNEL32.dll\0");
    put(0x620, b"Strange.Name.OCX\0");
    let width = if wide { 8 } else { 4 };
    let high = 1u64 << (8 * width - 1);
    for (place, thunks) in
        [(0x500, [0x1240u64, 0x1260, high | 17]), (0x580, [0x1280, high | 3, 0x9999])]
    {
        for (i, thunk) in thunks.iter().enumerate() {
            put(place + width * i, &thunk.to_le_bytes()[..width]);
        }
    }
    put(0x640, b"\0\0CreateFileA\0");
    put(0x660, b"\x01\0WriteFile\0");
    put(0x680, b"\0\0Second_One\0");
    data
}

#[test]
fn programs_have_yara_xs_hash() {
    for wide in [false, true] {
        let data = program(wide);
        let Imphash::Is(hash) = imphash(&data) else { panic!("its imports are plain") };
        let text = "kernel32.createfilea,kernel32.writefile,kernel32.ord17,\
            strange.name.second_one,strange.name.ord3";
        let digest = Md5::digest(text).iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hash, digest);
        let mut theirs = Vec::new();
        let rules = rules();
        let mut scanner = Scanner::new(rules);
        let said = std::rc::Rc::new(std::cell::RefCell::new(String::new()));
        let log = said.clone();
        scanner.console_log(move |message| *log.borrow_mut() = message);
        scanner.scan(&data).unwrap();
        theirs.push(said.borrow().clone());
        assert_eq!(theirs, [digest], "yara-x is asked at all");
        // At every length, and with each library whose ordinals have names.
        compare((0..data.len()).map(|len| data[..len].to_vec()));
        for name in
            ["WS2_32.dll", "oleaut32.DLL", "wsock32.dll", "k\u{e9}.dll", "a b.dll", "", "\u{1}.dll"]
        {
            let mut other = data.clone();
            other[0x600..0x600 + 13].fill(0);
            other[0x600..0x600 + name.len()].copy_from_slice(name.as_bytes());
            compare([other]);
        }
    }
    assert_eq!(imphash(b"no program"), Imphash::None);
    let data = program(false);
    assert!(may_export(&data, b"alpha") && may_export(&data, b"bet") && !may_export(&data, b"be"));
    assert!(!may_export(&data, b"gamma") && !may_export(b"MZ", b"alpha"));
}

#[test]
fn programs_of_the_machine_have_yara_xs_hash() {
    let places = [
        "/usr/share",
        "/usr/lib",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench/programs"),
    ];
    let mut found = Vec::new();
    for place in places {
        let mut below = vec![std::path::PathBuf::from(place)];
        while let Some(dir) = below.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
                if kind.is_dir() {
                    below.push(entry.path());
                } else if kind.is_file() && (name.ends_with(".dll") || name.ends_with(".exe")) {
                    found.push(entry.path());
                }
            }
        }
    }
    found.sort();
    let step = (found.len() / 300).max(1);
    compare(found.into_iter().step_by(step).filter_map(|path| std::fs::read(path).ok()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn wrong_programs_have_yara_xs_hash(
        wide in any::<bool>(),
        changes in proptest::collection::vec(
            (prop_oneof![0usize..0x100, 0x88usize..0x200, 0x400usize..0x7a0], prop_oneof![
                any::<u32>(),
                0u32..0x3000,
                Just(0),
                Just(u32::MAX),
                Just(0x8000_0011),
                0x1000u32..0x1400,
            ], 1usize..5),
            1..6,
        ),
        cut in prop_oneof![Just(0x800usize), 0usize..0x800],
    ) {
        let mut data = program(wide);
        for (at, value, len) in changes {
            data[at..at + len.min(4)].copy_from_slice(&value.to_le_bytes()[..len.min(4)]);
        }
        data.truncate(cut);
        compare([data]);
    }
}
