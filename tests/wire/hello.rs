//! HELLO's versions: what two builds agree on, and how one refuses the other.

use nix::libc;
use papr_intc_protocol::wire::handshake::*;

use crate::harness::Daemon;
use crate::harness::client::{self, Client, errno};
use crate::harness::guest::*;

#[test]
fn hello_without_a_common_version_is_refused_with_both_ranges() {
    let (_daemon, socket) = Daemon::connected(&[]);
    let main = Client::new(socket);
    for (min, max) in [(3, 9), (0, 0), (9, 3)] {
        let refused = main.call(&Hello {
            protocol_min: min,
            protocol_max: max,
            ..client::hello()
        });
        let refused = refused.unwrap_err();
        assert_eq!(refused.errno, libc::EPROTONOSUPPORT);
        assert!(
            refused.text.contains(&format!("{min} to {max}"))
                && refused.text.contains("protocol 1 to 1"),
            "{}",
            refused.text
        );
        let refused = main.call(&Hello {
            layout_min: min,
            layout_max: max,
            ..client::hello()
        });
        assert_eq!(errno(refused), libc::EPROTONOSUPPORT);
    }
    let demoted = main.call(&Hello {
        plane_abi: 9,
        ..client::hello()
    });
    assert_eq!(demoted.unwrap().verdict, verdict::DEMOTE);
}

#[test]
fn new_memory_has_the_highest_layout_that_both_understand_and_keeps_it() {
    let (_daemon, socket) = Daemon::connected(&[]);
    let main = Client::new(socket);
    let of = |layout_min, layout_max| {
        let hello = client::hello();
        main.call(&Hello {
            layout_min,
            layout_max,
            ..hello
        })
    };
    assert_eq!(of(0, 9).unwrap().layout, 2);
    assert_eq!(of(1, 1).unwrap().layout, 1);
    set_machine(&main, &machine()).unwrap();
    let (info, _shm) = get_shm(&main).unwrap();
    assert_eq!(info.layout, 1);
    assert_eq!(of(1, 9).unwrap().layout, 1, "there is memory already");
    let refused = of(2, 9).unwrap_err();
    assert_eq!(refused.errno, libc::EPROTONOSUPPORT);
    assert!(refused.text.contains("layout 1 to 1"), "{}", refused.text);
}
