//! OLE2 documents (MS-CFB) without their VBA projects.

use cfb::CompoundFile;
use std::io::{Cursor, Write};

/// Where Word and Excel keep their projects (MS-DOC 2.1.9, MS-XLS 2.1.7.13).
const PROJECTS: [&str; 2] = ["/Macros", "/_VBA_PROJECT_CUR"];

/// The document with the storages of its projects removed, and their bytes overwritten.
///
/// # Errors
/// When it has none, or is not regular.
pub(super) fn without_macros(content: &[u8]) -> Result<Vec<u8>, String> {
    let irregular = |e: std::io::Error| format!("an irregular OLE2 file: {e}");
    let file = Cursor::new(content.to_vec());
    let mut file = CompoundFile::open_strict(file).map_err(irregular)?;
    let mut found = false;
    for project in PROJECTS {
        if !file.is_storage(project) {
            continue;
        }
        found = true;
        let walk = file.walk_storage(project).map_err(irregular)?;
        let streams: Vec<_> =
            walk.filter(|e| e.is_stream()).map(|e| (e.path().to_owned(), e.len())).collect();
        for (path, len) in streams {
            // What is removed stays in the sectors that it had.
            let zeros = vec![0; usize::try_from(len).unwrap_or(0).min(content.len())];
            let mut stream = file.open_stream(&path).map_err(irregular)?;
            stream.write_all(&zeros).map_err(irregular)?;
            stream.flush().map_err(irregular)?;
        }
        file.remove_storage_all(project).map_err(irregular)?;
    }
    if !found {
        return Err("no macros where Word or Excel keeps them".into());
    }
    file.flush().map_err(irregular)?;
    Ok(file.into_inner().into_inner())
}
