//! mirrors conntrack, expectation and helper state between firewalls.
