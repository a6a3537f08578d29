//! The daemon: starts the queue threads, registers the helper once they
//! listen, answers control requests, and disables the helper on every way out.

use crate::census::Census;
use crate::cli::RunArgs;
use crate::config::{self, Settings};
use crate::control::Request;
use crate::core::Reason;
use crate::registry::Registry;
use crate::stats::Figure;
use crate::support::Failure;
use crate::worker::{Notice, Shared, Worker};
use daemon::memory::Startup;
use daemon::metrics::{Exporter, Kind, Metric};
use daemon::sandbox::{self, Files};
use daemon::signal::{Request as Signal, Signals};
use daemon::{ClientId, Reactor, Server, notify};
use netfilter::cthelper::HelperStatus;
use serde_json::{Map, Value, json};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

const SIGNALS: u64 = 0;
const CONTROL: u64 = 1;
const METRICS: u64 = 2;
const NOTICES: u64 = 3;
const EXPECTATIONS: u64 = 4;

/// Notices that may wait for the control thread.
const NOTICE_QUEUE: usize = 1024;
/// How often threads are looked after without a watchdog.
const CHECK: Duration = Duration::from_secs(5);
/// A queue thread that does not turn for this long is stuck.
const STUCK: Duration = Duration::from_secs(15);

/// Why the daemon ended without being asked to.
const THREAD_ENDED: &str = "a queue thread ended; the helper is disabled";
const THREAD_STUCK: &str = "a queue thread is stuck; the helper is disabled";

/// Runs until a signal ends it.
///
/// # Errors
/// Whatever kept it from starting, or ended it; the helper is disabled then.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let settings = config::resolve(args)?;
    let mut registry = Registry::open()?;
    let signals = Signals::new().map_err(|e| Failure::system("blocking signals", e))?;
    let startup = Startup::find();
    let mut daemon = Daemon::start(args.clone(), settings, signals)?;
    let outcome = registry
        .register(&daemon.settings.spec, HelperStatus::Enabled)
        .and_then(|()| {
            daemon.announce();
            startup.into_iter().for_each(Startup::release);
            daemon.serve(&mut registry)
        });
    notify::stopping();
    // Let packets pass before the queues go: nobody is stalled.
    let disabled = registry.disable(&daemon.settings.spec);
    daemon.stop();
    tracing::info!("helper disabled");
    outcome.and(disabled)
}

struct Daemon {
    args: RunArgs,
    settings: Settings,
    reactor: Reactor,
    signals: Signals,
    control: Server,
    metrics: Option<Exporter>,
    notices: Receiver<Notice>,
    shared: Arc<Shared>,
    census: Arc<Census>,
    workers: Vec<Worker>,
    watchers: Vec<ClientId>,
    started: Instant,
}

impl Daemon {
    fn start(args: RunArgs, settings: Settings, signals: Signals) -> Result<Self, Failure> {
        let system = |what: &'static str| move |e| Failure::system(what, e);
        let control = Server::bind(&settings.control).map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => Failure::Daemon(format!(
                "another daemon listens at {}",
                settings.control.display()
            )),
            _ => Failure::system(
                format!("creating control socket {}", settings.control.display()),
                e,
            ),
        })?;
        let metrics = settings
            .metrics
            .as_ref()
            .map(Exporter::bind)
            .transpose()
            .map_err(system("opening metrics address"))?;
        let (sender, notices) = sync_channel(NOTICE_QUEUE);
        let shared =
            Arc::new(Shared::new(settings.live(), sender).map_err(system("creating eventfd"))?);
        let reactor = Reactor::new().map_err(system("creating epoll"))?;
        let add = |fd: std::os::fd::BorrowedFd<'_>, token| {
            reactor
                .add(fd, token)
                .map_err(system("watching a descriptor"))
        };
        add(signals.as_fd(), SIGNALS)?;
        add(control.as_fd(), CONTROL)?;
        add(shared.wake.as_fd(), NOTICES)?;
        let helpers = settings.spec.helpers()?;
        let names = helpers.iter().map(|(name, _)| *name).collect();
        let census = Arc::new(Census::open(names, settings.limits)?);
        census.with_events(|fd| add(fd, EXPECTATIONS))?;
        if let Some(metrics) = &metrics {
            add(metrics.as_fd(), METRICS)?;
        }
        restrict(&settings)?;
        let start = |(name, queue)| {
            let (shared, census) = (Arc::clone(&shared), Arc::clone(&census));
            Worker::start(&settings, name, queue, shared, census)
        };
        let workers = helpers
            .into_iter()
            .map(start)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            args,
            settings,
            reactor,
            signals,
            control,
            metrics,
            notices,
            shared,
            census,
            workers,
            watchers: Vec::new(),
            started: Instant::now(),
        })
    }

    fn announce(&self) {
        let spec = &self.settings.spec;
        tracing::info!(
            helper = %spec.name,
            queues = ?spec.queues,
            block = self.settings.policies.default.block,
            permanent = self.settings.policies.default.permanent,
            "helper enabled"
        );
        notify::status(&format!("serving helper {}", spec.name));
        notify::ready();
    }

    fn serve(&mut self, registry: &mut Registry) -> Result<(), Failure> {
        let interval = notify::watchdog_interval().unwrap_or(CHECK).min(CHECK);
        let mut ready = Vec::new();
        loop {
            ready.clear();
            self.reactor
                .wait(Some(interval), &mut ready)
                .map_err(|e| Failure::system("waiting for events", e))?;
            self.check_workers()?;
            notify::alive();
            for token in &ready {
                match *token {
                    SIGNALS => match self.next_signal()? {
                        Some(Signal::Stop) => return Ok(()),
                        Some(Signal::Reload) => self.reload(registry),
                        Some(Signal::User) | None => {}
                    },
                    CONTROL => self.serve_control()?,
                    METRICS => self.serve_metrics()?,
                    EXPECTATIONS => self.census.read_events(),
                    _ => self.pass_notices(),
                }
            }
        }
    }

    fn next_signal(&self) -> Result<Option<Signal>, Failure> {
        self.signals
            .next()
            .map_err(|e| Failure::system("reading a signal", e))
    }

    fn check_workers(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        for worker in &mut self.workers {
            if worker.ended() {
                return Err(Failure::Daemon(THREAD_ENDED.to_owned()));
            }
            if worker.idle_since(now) > STUCK {
                return Err(Failure::Daemon(THREAD_STUCK.to_owned()));
            }
        }
        Ok(())
    }

    /// Takes a new policy; what would need other queues or names is refused.
    fn reload(&mut self, registry: &mut Registry) {
        notify::reloading();
        let outcome = config::resolve(&self.args).and_then(|new| {
            if let Some(key) = self.settings.needs_restart(&new) {
                return Err(Failure::Config(format!(
                    "a change of {key} needs a restart"
                )));
            }
            registry.register(&new.spec, HelperStatus::Enabled)?;
            self.shared.set_live(new.live());
            self.census.set_limits(new.limits);
            self.settings = new;
            Ok(())
        });
        match outcome {
            Ok(()) => tracing::info!("configuration reloaded"),
            Err(error) => tracing::error!(%error, "configuration not reloaded"),
        }
        notify::ready();
    }

    fn serve_control(&mut self) -> Result<(), Failure> {
        let requests = self
            .control
            .poll()
            .map_err(|e| Failure::system("serving the control socket", e))?;
        for (client, value) in requests {
            match serde_json::from_value(value) {
                Ok(Request::Status) => {
                    let status = self.status();
                    self.control.send(client, &status);
                    self.control.finish(client);
                }
                Ok(Request::Watch) => {
                    self.watchers.push(client);
                    self.shared.watched.store(true, Ordering::Relaxed);
                }
                Err(error) => {
                    self.control
                        .send(client, &json!({"error": error.to_string()}));
                    self.control.finish(client);
                }
            }
        }
        Ok(())
    }

    fn serve_metrics(&mut self) -> Result<(), Failure> {
        let Some(exporter) = self.metrics.as_mut() else {
            return Ok(());
        };
        let (workers, census) = (&self.workers, &self.census);
        exporter
            .poll(|| metrics(workers, census))
            .map_err(|e| Failure::system("serving metrics", e))
    }

    fn pass_notices(&mut self) {
        self.shared.drain_wake();
        while let Ok(notice) = self.notices.try_recv() {
            let value = notice.to_json();
            for client in &self.watchers {
                self.control.send(*client, &value);
            }
            if self.args.verbose {
                tracing::info!(event = %value, "ftp");
            }
        }
        self.watchers.retain(|c| self.control.is_connected(*c));
        let watched = self.args.verbose || !self.watchers.is_empty();
        self.shared.watched.store(watched, Ordering::Relaxed);
    }

    fn status(&self) -> Value {
        let mut counters = Map::new();
        for figure in Figure::ALL {
            let total: u64 = self.workers.iter().map(|w| w.stats.figure(figure)).sum();
            counters.insert(figure.describe().0.to_owned(), total.into());
        }
        let mut reasons = Map::new();
        for reason in Reason::ALL {
            let total = total_of(&self.workers, *reason);
            if total > 0 {
                reasons.insert(reason.as_str().to_owned(), total.into());
            }
        }
        let queues: Vec<Value> = self
            .workers
            .iter()
            .map(|w| {
                json!({"helper": w.name.as_str(), "queue": w.queue,
                            "packets": w.stats.figure(Figure::Packets)})
            })
            .collect();
        let policy = &self.settings.policies.default;
        let (expectations, clients) = self.census.size();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "helper": self.settings.spec.name.as_str(),
            "uptime-secs": self.started.elapsed().as_secs(),
            "config": self.settings.source,
            "port-mask": format!("{:#06x}", !(policy.block_size() - 1)),
            "permanent": policy.permanent,
            "expect-timeout-secs": self.settings.spec.expect_timeout_secs,
            "max-expected": self.settings.spec.max_expected,
            "max-expected-client": self.settings.limits.client,
            "max-expected-total": self.settings.limits.total,
            "live": {"expectations": expectations, "clients": clients},
            "queues": queues,
            "counters": counters,
            "events": reasons,
        })
    }

    fn stop(self) {
        for worker in &self.workers {
            worker.request_stop();
        }
        for worker in self.workers {
            worker.join();
        }
    }
}

fn total_of(workers: &[Worker], reason: Reason) -> u64 {
    workers.iter().map(|w| w.stats.reason_count(reason)).sum()
}

fn metrics(workers: &[Worker], census: &Census) -> Vec<Metric> {
    let mut all = Vec::new();
    for figure in Figure::ALL {
        let (name, help) = figure.describe();
        all.push(Metric {
            name: format!("nft_ftp_helper_{name}"),
            help,
            kind: Kind::Counter,
            samples: workers
                .iter()
                .map(|w| (vec![("queue", w.queue.to_string())], w.stats.figure(figure)))
                .collect(),
        });
    }
    all.push(Metric {
        name: "nft_ftp_helper_events".to_owned(),
        help: "Events of control connections by reason",
        kind: Kind::Counter,
        samples: Reason::ALL
            .iter()
            .map(|r| {
                (
                    vec![("reason", r.as_str().to_owned())],
                    total_of(workers, *r),
                )
            })
            .collect(),
    });
    let (expectations, clients) = census.size();
    let live = [
        (
            "live_expectations",
            "Expectations in the kernel",
            expectations,
        ),
        (
            "live_clients",
            "Clients that have live expectations",
            clients,
        ),
    ];
    for (name, help, value) in live {
        let value = u64::try_from(value).unwrap_or(u64::MAX);
        all.push(Metric {
            name: format!("nft_ftp_helper_{name}"),
            help,
            kind: Kind::Gauge,
            samples: vec![(Vec::new(), value)],
        });
    }
    all
}

/// Gives up everything but what serving needs. Threads started later inherit
/// it.
fn restrict(settings: &Settings) -> Result<(), Failure> {
    let parent = |p: &std::path::Path| p.parent().map(std::path::Path::to_owned);
    let files = Files {
        // The directory: editors replace the file.
        read: settings
            .source
            .as_deref()
            .and_then(parent)
            .into_iter()
            .collect(),
        write: parent(&settings.control).into_iter().collect(),
    };
    // Packets carry passwords.
    let enforced = sandbox::hide_memory()
        .and_then(|()| sandbox::keep_net_admin_only())
        .and_then(|()| sandbox::restrict_files(&files))
        .and_then(|enforced| sandbox::restrict_syscalls().map(|()| enforced))
        .map_err(|e| Failure::Daemon(e.to_string()))?;
    tracing::debug!(landlock = ?enforced, "restricted to CAP_NET_ADMIN");
    Ok(())
}

/// Asks the daemon at `control` for its status.
///
/// # Errors
/// No daemon runs there, or it refused.
pub fn request_status(control: &std::path::Path) -> Result<Value, Failure> {
    daemon::Client::connect(control)
        .and_then(|mut client| client.request(&Request::Status))
        .map_err(|e| Failure::Daemon(format!("asking the daemon at {}: {e}", control.display())))
}
