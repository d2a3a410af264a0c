//! Sans-IO wire protocols: bytes in, events and bytes out. No clock, no descriptor, no task.
