//! What the compiler says to a user who makes a mistake.
#![cfg(feature = "embedded")]

#[test]
fn mistakes_are_explained() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/errors/*.rs");
    cases.compile_fail("tests/errors/debug_handler/*.rs");
}
