//! Sockets of clients, seen by sessions as readers and writers.
