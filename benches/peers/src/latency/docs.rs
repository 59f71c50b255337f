//! Into the documentation: the pictures beside it, the text between its two marks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

const BEGIN: &str = "<!-- generated: latency -->";
const END: &str = "<!-- end -->";

/// Replaces what is between the marks in a document.
pub fn write(document: &Path, text: &str) -> Result<()> {
    let shown = document.display();
    let before = fs::read_to_string(document).with_context(|| format!("could not read {shown}"))?;
    let after = replaced(&before, text).with_context(|| format!("in {shown}"))?;
    fs::write(document, after).with_context(|| format!("could not write {shown}"))
}

fn replaced(document: &str, text: &str) -> Result<String> {
    let Some((before, rest)) = document.split_once(BEGIN) else {
        bail!("there is no line {BEGIN}");
    };
    let Some((_, after)) = rest.split_once(END) else {
        bail!("there is no line {END} after {BEGIN}");
    };
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let document = format!("# A\n\n{BEGIN}\nold\n{END}\n\nB {END}\n");
        let once = replaced(&document, "\nnew\n\n").unwrap();
        assert_eq!(once, format!("# A\n\n{BEGIN}\nnew\n{END}\n\nB {END}\n"));
        assert_eq!(replaced(&once, "new").unwrap(), once);
        assert!(replaced("nothing", "new").is_err());
        assert!(replaced(BEGIN, "new").is_err());
    }
}
