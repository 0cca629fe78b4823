"""Devices, hosts and processes: runners, preemption, failure detection."""
