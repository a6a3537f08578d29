//! The ruleset in a real kernel, loaded by us and by nft.

mod support;

use support::{available, in_namespace, listing};

/// The kernel's own helper: present everywhere, unlike nft-ftp.
const KERNEL_HELPER: &str = "[[helper]]\ntype = \"ftp\"\n";

/// With counters, the operator's own set, and addresses.
const FIREWALL: &str = "
[addresses.servers]
elements = [\"192.0.2.0/24\", \"2001:db8::1\"]
[[helper]]
type = \"ftp\"
servers = \"servers\"
[firewall.input]
";

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
fn unregistered_helper_is_explained_where_it_is_written_and_nothing_is_loaded() {
    if !available() {
        return;
    }
    let policy = "table = \"mine\"\n[[helper]]\ntype = \"nobodys\"\n";
    let output = in_namespace(
        "$PROGRAM load --config $POLICY || { nft list ruleset; exit 7; }",
        policy,
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    for expected in [
        "adding ct helper \"ftp\": no such file or directory (ENOENT)",
        ":2:1\n",
        "help: helper nobodys is not registered: start nft-ftp-helper first",
    ] {
        assert!(errors.contains(expected), "no {expected:?} in {errors}");
    }
    assert!(
        !errors.contains("adding rule"),
        "only the cause is reported: {errors}"
    );
}

#[test]
fn policy_that_cannot_be_read_is_named() {
    let output = in_namespace("$PROGRAM load --config /nonexistent", "");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("reading /nonexistent"), "{errors}");
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
    let script = "$PROGRAM check --config $POLICY; nft list ruleset";
    assert_eq!(listing(script, KERNEL_HELPER), "");
    let refused = in_namespace(
        "$PROGRAM check --config $POLICY",
        "[[helper]]\ntype = \"nobodys\"\n",
    );
    assert_eq!(refused.status.code(), Some(2));
    // Also of a table that is there: what `load` would do to it is undone.
    let script = "$PROGRAM load --config $POLICY; nft list ruleset > before; \
            sed s/192.0.2.0/198.51.100.0/ $POLICY > other; \
            $PROGRAM check --config other; nft list ruleset | diff before -";
    assert_eq!(listing(&in_a_directory(script), FIREWALL), "");
}

fn in_a_directory(script: &str) -> String {
    format!(
        "dir=$(mktemp -d); trap 'kill $(jobs -p) 2> /dev/null || true; rm -r $dir' EXIT; cd $dir; {script}"
    )
}

#[test]
fn diff_says_what_load_would_do_and_load_does_it() {
    if !available() {
        return;
    }
    let script = "$PROGRAM load --config $POLICY; $PROGRAM diff --config $POLICY; \
            nft add element inet nft_ftp servers4 '{ 198.51.100.7 }'; \
            nft delete element inet nft_ftp servers6 '{ 2001:db8::1 }'; \
            nft add rule inet nft_ftp forward tcp dport 23 accept; \
            nft insert rule inet nft_ftp input meta mark 7 accept; \
            nft add counter inet nft_ftp mine; nft delete chain inet nft_ftp hold; \
            $PROGRAM diff --config $POLICY || echo status $?; \
            $PROGRAM load --config $POLICY; $PROGRAM diff --config $POLICY";
    let expected = "\
-   counter mine
  set servers4:
-     198.51.100.7
  set servers6:
+     2001:db8::1
+   chain hold (type filter hook prerouting priority -160 policy accept)
  chain hold:
+     ct state invalid,new tcp flags & (fin | syn | rst | ack) != syn meta l4proto @hold counter name \"held\" drop
  chain input:
-     [meta 1=U32(3) 2=U32(1)] [cmp 1=U32(1) 2=U32(0) 3=Data([7, 0, 0, 0])] accept
  chain forward:
-     tcp dport 23 accept
status 1
";
    assert_eq!(listing(script, FIREWALL), expected);
}

#[test]
fn diff_is_an_object_in_json() {
    if !available() {
        return;
    }
    let script = "$PROGRAM load --config $POLICY; nft add table inet other; nft flush ruleset; \
            $PROGRAM diff --json --config $POLICY || test $? = 1";
    let text = listing(script, FIREWALL);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["loaded"], false, "{text}");
    assert_eq!(json["differences"][0]["change"], "add", "{text}");
    assert_eq!(json["differences"][0]["kind"], "table", "{text}");
}

#[test]
fn flushed_ruleset_is_noticed_and_repaired() {
    if !available() {
        return;
    }
    let script = "$PROGRAM load --config $POLICY; nft list ruleset > before; nft flush ruleset; \
            $PROGRAM diff --config $POLICY || echo status $?; \
            $PROGRAM load --config $POLICY; $PROGRAM diff --config $POLICY; \
            nft list ruleset | diff before -";
    assert_eq!(
        listing(&in_a_directory(script), FIREWALL),
        "table inet nft_ftp is not loaded\nstatus 1\n"
    );
}

#[test]
fn reload_keeps_counts_and_what_the_operator_put_into_his_set() {
    if !available() {
        return;
    }
    // Both packets of a refused connection on the loopback are counted.
    let script = "ip link set lo up; $PROGRAM load --config $POLICY; \
            nft add element inet nft_ftp hold '{ tcp timeout 1h }'; \
            nft insert rule inet nft_ftp input counter name input_dropped; \
            (exec 3<>/dev/tcp/127.0.0.1/9) 2> /dev/null || true; \
            nft list counter inet nft_ftp input_dropped > before; \
            $PROGRAM load --config $POLICY; $PROGRAM diff --config $POLICY; \
            nft list counter inet nft_ftp input_dropped | diff before -; \
            $PROGRAM show --config $POLICY | grep -o 'input_dropped, .*: [0-9]* packets' | sed 's/.*: //'; \
            nft list set inet nft_ftp hold | grep -c 'tcp timeout 1h'";
    assert_eq!(listing(&in_a_directory(script), FIREWALL), "2 packets\n1\n");
}

#[test]
fn hundred_thousand_elements_are_one_transaction() {
    if !available() {
        return;
    }
    let script = "seq 0 99999 | awk '{ printf \"10.%d.%d.%d\\n\", $1/32768, ($1/128)%256, ($1%128)*2 }' > list; \
            printf '[addresses.servers]\nfile = \"%s/list\"\n[[helper]]\ntype = \"ftp\"\nservers = \"servers\"\n' $dir > policy; \
            $PROGRAM load --config policy; $PROGRAM load --config policy; \
            $PROGRAM diff --config policy; \
            nft -j list set inet nft_ftp servers4 | tr , '\\n' | grep -c '\"10\\.'";
    let script = in_a_directory(script);
    assert_eq!(listing(&script, ""), "100000\n");
}

#[test]
fn load_goes_through_while_others_change_the_ruleset() {
    if !available() {
        return;
    }
    let script = "(while :; do nft add table inet other; nft delete table inet other; done) & \
            for i in 1 2 3 4 5 6 7 8 9 10; do $PROGRAM load --config $POLICY; done; \
            kill $!; wait; $PROGRAM diff --config $POLICY";
    assert_eq!(listing(script, FIREWALL), "");
}

/// A set of one element lists differently in nft 1.0.6 and 1.1.
#[test]
fn interface_named_twice_is_matched_once() {
    let policy = "[[zone]]\nid = 7\ninterfaces = [\"eth0\", \"eth0\"]\n";
    let text = listing("$PROGRAM generate --config $POLICY", policy);
    assert!(
        text.contains("\t\tiifname \"eth0\" ct zone set 7\n"),
        "{text}"
    );
}

/// Also of root without the capability, as in a container.
#[test]
fn missing_privilege_is_named() {
    if !available() {
        return;
    }
    for command in ["load", "check", "unload", "show", "diff"] {
        let script = format!(
            "setpriv --bounding-set -net_admin --inh-caps -net_admin \
             $PROGRAM {command} --config $POLICY"
        );
        let output = in_namespace(&script, KERNEL_HELPER);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command}: {errors}");
        assert!(errors.contains("CAP_NET_ADMIN"), "{command}: {errors}");
    }
}

#[test]
fn json_with_expectations_says_which_nft_can_read_it() {
    let policy = "[[expectation]]\nname = \"e\"\ncontrol-ports = [990]\nports = 30000\n";
    let script = "$PROGRAM generate --format FORMAT --config $POLICY";
    for (format, policy, warned) in [
        ("json", policy, true),
        ("nft", policy, false),
        ("json", "", false),
    ] {
        let output = in_namespace(&script.replace("FORMAT", format), policy);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert_eq!(
            errors.contains("nft before 1.0.9"),
            warned,
            "{format}: {errors}"
        );
    }
}

/// Where no policy is, it is not named as the place of a mistake.
#[test]
fn defaults_are_not_blamed_on_a_file_that_is_not_there() {
    if !available() {
        return;
    }
    let script = "unshare --mount bash -c 'mount -t tmpfs none /etc; $PROGRAM load'";
    let output = in_namespace(script, "");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("in the defaults: there is no /etc/nft-ftp"),
        "{errors}"
    );
}
