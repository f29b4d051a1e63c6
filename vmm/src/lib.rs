//! The machine: KVM VM and vCPUs, memory, boot, devices, capture and restore of their state
