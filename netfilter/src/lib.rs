//! nfnetlink codecs: conntrack, expectations, conntrack helpers, NFQUEUE, and the socket they share.
