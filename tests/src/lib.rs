//! test laboratory: network namespaces, real FTP peers, virtual machines.
