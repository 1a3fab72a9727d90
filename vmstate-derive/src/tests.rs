//! What the derive says about mistakes.

use crate::expand::vm_state;

fn complaint(source: &str) -> String {
    let input = syn::parse_str(source).expect("the test's source is a struct");
    vm_state(&input).expect_err("the derive accepts this").to_string()
}

fn complaint_about_field(field: &str) -> String {
    complaint(&format!("#[vmstate(name = \"serial\", version = 3)] struct Serial {{ {field} }}"))
}

#[track_caller]
fn assert_says(complaint: &str, expected: &str) {
    assert!(complaint.contains(expected), "{complaint:?} does not say {expected:?}");
}

#[test]
fn an_unknown_struct_attribute_is_named_with_the_known_ones() {
    let got = complaint("#[vmstate(name = \"x\", versoin = 1)] struct X { a: u8 }");
    assert_says(
        &got,
        "unknown vmstate attribute `versoin`; a struct may have name, version, minimum_version",
    );
}

#[test]
fn an_unknown_field_attribute_is_named_with_the_known_ones() {
    let got = complaint_about_field("#[vmstate(bufer)] a: [u8; 4]");
    assert_says(&got, "unknown vmstate attribute `bufer`; a field may have skip, name, since");
}

#[test]
fn a_missing_name_is_asked_for() {
    assert_says(&complaint("struct X { a: u8 }"), "missing #[vmstate(name = \"...\")]");
    assert_says(&complaint("#[vmstate(version = 2)] struct X { a: u8 }"), "missing #[vmstate(name");
}

#[test]
fn a_name_that_the_wire_cannot_carry_is_refused() {
    assert_says(&complaint("#[vmstate(name = \"\")] struct X {}"), "the name has 0 bytes; expected 1 to 255");
    let long = format!("#[vmstate(name = \"{}\")] struct X {{}}", "x".repeat(256));
    assert_says(&complaint(&long), "the name has 256 bytes");
}

#[test]
fn versions_that_contradict_each_other_are_refused() {
    let got = complaint("#[vmstate(name = \"x\", version = 2, minimum_version = 3)] struct X {}");
    assert_says(&got, "minimum_version 3 is newer than version 2");
    assert_says(
        &complaint_about_field("#[vmstate(since = 4)] a: u8"),
        "since = 4, but the struct's version is 3",
    );
}

#[test]
fn an_attribute_said_twice_is_refused() {
    assert_says(&complaint("#[vmstate(name = \"x\", name = \"y\")] struct X {}"), "`name` is said twice");
    assert_says(
        &complaint_about_field("#[vmstate(since = 1)] #[vmstate(since = 2)] a: u8"),
        "`since` is said twice",
    );
}

#[test]
fn only_structs_with_named_fields_are_accepted() {
    assert_says(&complaint("#[vmstate(name = \"x\")] enum X { A }"), "for a struct only");
    assert_says(&complaint("#[vmstate(name = \"x\")] struct X(u8);"), "needs named fields");
}

#[test]
fn a_vec_without_its_count_or_limit_is_refused() {
    assert_says(
        &complaint_about_field("n: u8, a: Vec<u8>"),
        "`a` is a Vec: it needs count = an earlier field",
    );
    assert_says(
        &complaint_about_field("n: u8, #[vmstate(count = n)] a: Vec<u8>"),
        "`a` needs a limit: max = N",
    );
    assert_says(
        &complaint_about_field("n: u8, #[vmstate(max = 4)] a: Vec<u8>"),
        "`a` has a max but no count",
    );
}

#[test]
fn a_count_must_come_earlier_on_the_wire_and_be_plain() {
    let expected = "`n` must be a field of the wire before `a`, whose count it is";
    assert_says(&complaint_about_field("#[vmstate(count = n, max = 4)] a: Vec<u8>, n: u8"), expected);
    assert_says(
        &complaint_about_field("#[vmstate(skip)] n: u8, #[vmstate(count = n, max = 4)] a: Vec<u8>"),
        expected,
    );
    let got =
        complaint_about_field("#[vmstate(timer)] n: u64, #[vmstate(count = \"n\", max = 4)] a: Vec<u8>");
    assert_says(&got, "`n` must be a plain integer to be the count of `a`");
}

#[test]
fn two_encodings_of_one_field_are_refused() {
    let got = complaint_about_field("#[vmstate(timer, equal)] a: u64");
    assert_says(&got, "at most one of timer, equal, buffer, bitmap and subsection");
    let got = complaint_about_field("n: u8, #[vmstate(equal, count = n, max = 4)] a: Vec<u8>");
    assert_says(&got, "a field with a count has elements, or is a buffer or a bitmap");
}

#[test]
fn a_skipped_field_can_say_nothing_else() {
    assert_says(&complaint_about_field("#[vmstate(skip, since = 2)] a: u8"), "it can say nothing else");
}

#[test]
fn a_subsection_says_when_it_is_needed() {
    assert_says(
        &complaint_about_field("#[vmstate(subsection)] a: Fifo"),
        "subsection(needed = Self::predicate)",
    );
    assert_says(
        &complaint_about_field("#[vmstate(subsection(need = f))] a: Fifo"),
        "unknown vmstate attribute `need`",
    );
    let got = complaint_about_field("#[vmstate(subsection, since = 2)] a: Option<Fifo>");
    assert_says(&got, "takes neither `since` nor `exists`");
}
