//! The snippets on async tasks of `docs/GUIDE.md`, which are compiled here, with the feature.

#[expect(dead_code)]
mod enqueueing;
#[expect(dead_code)]
mod stopping;
#[expect(dead_code)]
mod workers;

#[test]
fn the_guide_has_the_snippets_that_are_compiled_here() {
    let guide = include_str!("../../docs/GUIDE.md");
    let snippets = [
        include_str!("guide/workers.rs"),
        include_str!("guide/stopping.rs"),
        include_str!("guide/enqueueing.rs"),
    ];
    let mut blocks = guide.split("```rust,ignore\n").skip(1);
    for snippet in snippets {
        let block = blocks.next().and_then(|rest| rest.split("```").next());
        assert_eq!(block, Some(snippet));
    }
    assert_eq!(blocks.next(), None, "not compiled");
}
