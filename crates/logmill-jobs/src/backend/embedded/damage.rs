//! What recovery found damaged, in lines that an operator reads.

use logmill::RecoveryReport;

/// What a report says of damage, a line each.
pub(super) fn lines_of(report: &RecoveryReport) -> Vec<String> {
    let regions = report.quarantined.iter().map(|region| {
        let path = region.path.display();
        let mut line = match region.len {
            0 => format!("{path} {}", region.damage),
            len => format!(
                "{path}: {len} bytes from {} on: {}",
                region.offset, region.damage
            ),
        };
        if let Some(copy) = &region.copy {
            line.push_str(&format!("; a copy is {}", copy.display()));
        }
        line
    });
    let rebuilt = report.ack_files_rebuilt.iter().map(|path| {
        let path = path.display();
        format!("{path} was rebuilt: the jobs of its segment are delivered again")
    });
    let mended = report.headers_mended.iter();
    let mended = mended.map(|path| format!("the header of {} was restored", path.display()));
    let words = (report.ack_words_reset > 0).then(|| {
        let words = report.ack_words_reset;
        format!("{words} words of acks were damaged: up to 32 jobs for each are delivered again")
    });
    regions.chain(rebuilt).chain(mended).chain(words).collect()
}
