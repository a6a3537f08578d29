//! what the daemons share: event loop, control socket, service manager, logs, sandbox.
