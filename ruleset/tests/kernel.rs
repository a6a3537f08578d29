//! The ruleset in a real kernel, loaded by us and by nft.

mod support;

use support::{available, in_namespace, listing};

/// The kernel's own helper: present everywhere, unlike nft-ftp.
const KERNEL_HELPER: &str = "[[helper]]\ntype = \"ftp\"\n";

const LOAD: &str = "$PROGRAM load --config $POLICY; nft list table inet nft_ftp";
const NFT: &str = "$PROGRAM generate --config $POLICY | nft -f -; nft list table inet nft_ftp";

#[test]
fn listing_is_the_same_loaded_by_us_or_by_nft() {
    if !available() {
        return;
    }
    let ours = listing(LOAD, KERNEL_HELPER);
    assert_eq!(ours, listing(NFT, KERNEL_HELPER));
    assert!(
        ours.contains("tcp dport 21 ct helper set \"ftp\""),
        "{ours}"
    );
    let again = listing("nft -f -; nft list table inet nft_ftp", &ours);
    assert_eq!(again, ours, "what nft lists it must load again");
}

#[test]
fn unregistered_helper_is_explained_and_nothing_is_loaded() {
    if !available() {
        return;
    }
    let output = in_namespace("$PROGRAM load --config /nonexistent || $PROGRAM load", "");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("reading policy /nonexistent"), "{errors}");
    assert!(
        errors.contains("helper nft-ftp is not registered: start nft-ftp-helper first"),
        "{errors}"
    );
    assert!(
        !errors.contains("adding rule"),
        "only the cause is reported: {errors}"
    );
}

#[test]
fn unload_removes_only_our_table_and_may_be_repeated() {
    if !available() {
        return;
    }
    let script = "nft add table inet other; nft add table ip nft_ftp; \
            $PROGRAM load --config $POLICY; $PROGRAM unload; $PROGRAM unload; nft list tables";
    assert_eq!(
        listing(script, KERNEL_HELPER),
        "table inet other\ntable ip nft_ftp\n"
    );
}

#[test]
fn check_asks_the_kernel_and_changes_nothing() {
    if !available() {
        return;
    }
    let script = "    $PROGRAM check --config $POLICY; nft list ruleset";
    assert_eq!(listing(script, KERNEL_HELPER), "");
    let refused = in_namespace("$PROGRAM check", "");
    assert_eq!(refused.status.code(), Some(2));
}
