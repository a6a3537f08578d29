//! What the firewalls run, beside keepalived.

use anyhow::Result;
use lab::pair::Node;
use lab::vrrp::Scripts;

use crate::scene::Scene;
use crate::screen::Details;

/// A ruleset, an FTP helper, and a mirror of states.
pub trait Software {
    /// What it is.
    fn name(&self) -> String;

    /// Starts everything on a firewall.
    fn boot(&mut self, scene: &Scene, node: Node) -> Result<Details>;

    /// What keepalived calls.
    fn scripts(&self, node: Node) -> Result<Scripts>;

    /// Everything on a firewall has been killed.
    fn is_dead(&mut self, node: Node);

    /// Waits until the other firewall has all of `from`'s states.
    fn wait_synced(&mut self, scene: &Scene, from: Node) -> Result<Details>;

    /// Waits until a firewall knows that it waits.
    fn wait_backup(&mut self, node: Node) -> Result<()>;

    /// The other's expectations that a firewall has a copy of.
    fn mirrored_expectations(&mut self, node: Node) -> Result<Vec<String>>;

    /// How many announcements a firewall's helper has met with an expectation
    /// that was there already.
    fn reused(&mut self, scene: &Scene, node: Node) -> Result<u64>;

    /// Waits until a firewall, since it was booted, has taken over for the
    /// `nth` time.
    fn took_over(&mut self, node: Node, nth: usize) -> Result<Details>;

    /// What was logged.
    fn logs(&mut self) -> String;

    /// Ends everything in good order.
    fn stop(&mut self, scene: &Scene) -> Result<()>;
}
