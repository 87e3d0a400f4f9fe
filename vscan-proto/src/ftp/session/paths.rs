//! Where in the server's tree a name lies, as far as the dialogue tells. Links and the server's own
//! ideas are unknown here: what comes out is a key for the memory, nothing to rely on.

/// Longest path that is followed; a longer one is cut at its front.
const PATH_LIMIT: usize = 4096;

/// The path of `name` seen from `directory`, without `.` and `..`. Begins with a slash when it is
/// known from the root on; without one it is relative to the directory after the login.
pub(super) fn below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let rooted = name.starts_with(b"/") || name.starts_with(b"~") || directory.starts_with(b"/");
    let start: &[u8] =
        if name.starts_with(b"/") || name.starts_with(b"~") { b"" } else { directory };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in start.split(|&byte| byte == b'/').chain(name.split(|&byte| byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => drop(parts.pop()),
            b".." if rooted => {}
            part => parts.push(part),
        }
    }
    let mut path = Vec::with_capacity(start.len() + name.len() + 1);
    for part in &parts {
        if rooted || !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    let over = path.len().saturating_sub(PATH_LIMIT);
    path.drain(..over);
    path
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn names_are_found_below_directories() {
        let check = |directory: &str, name: &str, path: &str| {
            let found = below(directory.as_bytes(), name.as_bytes());
            assert_eq!(String::from_utf8(found).unwrap(), path, "{directory} {name}");
        };
        check("", "a", "a");
        check("", "/a//b/./c", "/a/b/c");
        check("/pub", "a", "/pub/a");
        check("/pub", "../a", "/a");
        check("/pub", "/x", "/x");
        check("/", "../../a", "/a");
        check("", "../a", "../a");
        check("../b", "..", "..");
        check("..", "..", "../..");
        check("sub", "..", "");
        check("/pub", "", "/pub");
        check("/pub", "~bob/x", "/~bob/x");
    }

    #[test]
    fn a_path_is_bounded() {
        let long = vec![b'x'; 8000];
        assert_eq!(below(&long, b"end").len(), super::PATH_LIMIT);
        assert!(below(&long, b"end").ends_with(b"/end"));
    }
}
