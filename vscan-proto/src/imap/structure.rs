//! What a message is made of, as BODYSTRUCTURE tells it (RFC 9051 section 7.5.2).

use super::value::Value;

/// Whether a message is nothing but one portion of plain text that is shown: no attachment, no HTML, no name.
///
/// A structure that says anything else, or that is not understood, is no: the message is fetched then.
#[must_use]
pub fn is_plain(structure: &Value) -> bool {
    // type subtype parameters id description encoding octets lines [md5 [disposition ...]]
    let Some([kind, subtype, parameters, id, description, _, _, _, rest @ ..]) = structure.list()
    else {
        return false;
    };
    let unnamed = match parameters {
        Value::Nil => true,
        Value::List(pairs) => {
            pairs.len().is_multiple_of(2)
                && pairs.iter().step_by(2).all(|name| {
                    name.bytes().is_some_and(|name| {
                        // `name`, and its pieces and encodings `name*0*` (RFC 2231).
                        let stem = name.split(|byte| *byte == b'*').next().unwrap_or_default();
                        !stem.eq_ignore_ascii_case(b"name")
                    })
                })
        }
        Value::Atom(_) | Value::Text(_) => false,
    };
    let disposed = !matches!(rest.get(1), None | Some(Value::Nil));
    let identified = matches!((id, description), (Value::Nil, Value::Nil));
    kind.is("text") && subtype.is("plain") && unnamed && !disposed && identified
}

#[cfg(test)]
mod tests {
    use super::super::value::values;
    use super::*;
    use bytes::Bytes;

    #[test]
    fn only_text_that_is_shown_is_plain() {
        for (structure, expect) in [
            (r#"("text" "plain" ("charset" "utf-8") NIL NIL "7bit" 10 1 NIL NIL NIL NIL)"#, true),
            (r#"("TEXT" "PLAIN" NIL NIL NIL "8BIT" 10 1)"#, true),
            (r#"("text" "html" ("charset" "utf-8") NIL NIL "7bit" 10 1 NIL NIL NIL NIL)"#, false),
            (r#"("text" "plain" ("name" "x.exe") NIL NIL "base64" 10 1 NIL NIL NIL NIL)"#, false),
            (r#"("text" "plain" ("NAME*0*" "x.exe") NIL NIL "base64" 10 1)"#, false),
            (r#"("text" "plain" ("charset") NIL NIL "base64" 10 1)"#, false),
            (r#"("text" "plain" NIL NIL NIL "7bit" 10 1 NIL ("attachment" NIL) NIL NIL)"#, false),
            (r#"("text" "plain" NIL NIL NIL "7bit" 10 1 NIL ("inline" NIL) NIL NIL)"#, false),
            (r#"("text" "plain" NIL NIL "virus.exe" "7bit" 10 1)"#, false),
            (r#"("text" "plain" NIL NIL NIL "7bit" 10)"#, false),
            (r#"(("text" "plain" NIL NIL NIL "7bit" 10 1) "mixed")"#, false),
            (
                r#"(("text" "plain" NIL NIL NIL "7bit" 10 1)("text" "html" NIL NIL NIL "7bit" 1 1) "alternative")"#,
                false,
            ),
            ("NIL", false),
            ("()", false),
        ] {
            let parsed = values(&Bytes::copy_from_slice(structure.as_bytes())).unwrap();
            assert_eq!(is_plain(&parsed[0]), expect, "{structure}");
        }
    }
}
