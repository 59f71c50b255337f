//! Replaces generated blocks in a Markdown document, each of which is between two markers.

/// The document with the body of the block `name` replaced; `None` if it has no such block, or one
/// that does not end before the next begins.
pub fn replace_block(document: &str, name: &str, body: &str) -> Option<String> {
    const END: &str = "<!-- end -->";
    let start = format!("<!-- generated: {name} -->");
    let (before, rest) = document.split_once(&start)?;
    let (old, after) = rest.split_once(END)?;
    if old.contains("<!-- generated: ") {
        return None;
    }
    Some(format!(
        "{before}{start}\n\n{}\n\n{END}{after}",
        body.trim_end()
    ))
}

/// The document with a section put before this heading; `None` if there is no such heading.
pub fn insert_before(document: &str, heading: &str, section: &str) -> Option<String> {
    let at = document.find(&format!("\n{heading}\n"))? + 1;
    let (before, after) = document.split_at(at);
    Some(format!("{before}{}\n\n{after}", section.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# A\n<!-- generated: one -->\nold\n<!-- end -->\ntext\n\
                            <!-- generated: two -->\n<!-- end -->\nend\n";

    #[test]
    fn only_the_named_block_changes() {
        let replaced = replace_block(DOCUMENT, "one", "new\n").unwrap();
        assert_eq!(replaced, DOCUMENT.replace("\nold\n", "\n\nnew\n\n"),);
    }

    #[test]
    fn a_replacement_with_the_same_body_changes_nothing() {
        let once = replace_block(DOCUMENT, "two", "new").unwrap();
        assert_eq!(replace_block(&once, "two", "new").unwrap(), once);
    }

    #[test]
    fn a_section_is_put_before_a_heading_and_its_block_can_be_replaced() {
        let document = "# A\n\n## B\n\ntext\n";
        let section = "## New\n\n<!-- generated: new -->\n<!-- end -->\n";
        let inserted = insert_before(document, "## B", section).unwrap();
        assert_eq!(inserted, format!("# A\n\n{section}\n## B\n\ntext\n"));
        assert!(replace_block(&inserted, "new", "body").is_some());
        assert_eq!(insert_before(document, "## C", section), None);
    }

    #[test]
    fn a_block_that_is_missing_or_open_is_not_replaced() {
        assert_eq!(replace_block(DOCUMENT, "three", "new"), None);
        let open = DOCUMENT.replacen("<!-- end -->", "", 1);
        assert_eq!(replace_block(&open, "one", "new"), None);
    }
}
