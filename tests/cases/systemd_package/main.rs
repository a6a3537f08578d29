//! The package on a machine of its own, under a real systemd: what the task
//! runner's `machine` boots. Each step that holds is printed as it is checked.
//!
//! The first boot installs and enables it, the second finds it running; each
//! test of the second leaves everything running again.

mod first_boot;
mod second_boot;
mod system;
