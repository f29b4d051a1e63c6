//! Moving bytes: TCP over io_uring, in-process; shaped for one-sided RDMA
