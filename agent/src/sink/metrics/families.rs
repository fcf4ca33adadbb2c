//! All families: names, types and meanings.

/// Types of family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Counter,
    Gauge,
    /// A gauge that is always 1 and whose labels are the point.
    Info,
    Histogram,
}

/// One family. The name is that of its samples: counters end in `_total`.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Type,
    pub(super) help: &'static str,
}

macro_rules! families {
    ($($constant:ident $name:literal $kind:ident $help:literal;)*) => {
        $(pub(super) const $constant: Family = Family { name: $name, kind: Type::$kind, help: $help };)*
        /// All families, in the order of `docs/metrics.md`.
        #[cfg(test)]
        pub(super) const ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    CONNECT_DURATION "galen_tcp_connect_duration_seconds" Histogram "Time from SYN to established.";
    CONNECTS "galen_tcp_connects_total" Counter "TCP connects that ended.";
    SYN_RETRANSMITS "galen_tcp_syn_retransmits_total" Counter "SYNs sent again.";
    WRITES "galen_file_writes_total" Counter "Writes to regular files that did not fail.";
    WRITE_BYTES "galen_file_write_bytes_total" Counter "Bytes that writes to regular files returned.";
    WRITE_ERRORS "galen_file_write_errors_total" Counter "Writes to regular files that failed.";
    WRITE_DURATION "galen_file_write_duration_seconds" Histogram "Time in the call of writes that did not fail.";
    OOM_KILLS "galen_oom_kills_total" Counter "Tasks marked as victims of an OOM kill.";
    SERIES_OTHER "galen_series_other" Gauge "Series that are summed into the one labelled other.";
    SEEN "galen_events_seen_total" Counter "Events whose fate is known: delivered, filtered, sampled or dropped.";
    DELIVERED "galen_events_delivered_total" Counter "Events handed to the consumers.";
    FILTERED "galen_events_filtered_total" Counter "Events that were not notable under the configured rules.";
    SAMPLED "galen_events_sampled_total" Counter "Events left out by sampling.";
    DROPPED "galen_events_dropped_total" Counter "Events that were lost on the way.";
    IN_FLIGHT "galen_events_in_flight" Gauge "Events in a ring, whose fate is not known yet.";
    START_UNKNOWN "galen_events_start_unknown_total" Counter "Events counted without latency and task, as their start was not seen.";
    STATS_FULL "galen_events_stats_full_total" Counter "Events counted as other, as no more cgroups fit.";
    PROBE_INFO "galen_probe_info" Info "Which hook each probe uses.";
    BPF_RUN_SECONDS "galen_bpf_run_seconds_total" Counter "Time that programs ran in the kernel.";
    BPF_RUNS "galen_bpf_runs_total" Counter "Times that programs ran in the kernel.";
    IDENTITY_ENTRIES "galen_identity_entries" Gauge "What is kept to name cgroups, containers and processes.";
    IDENTITY_BYTES "galen_identity_bytes" Gauge "Bytes that it takes.";
    IDENTITY_EVICTIONS "galen_identity_evictions_total" Counter "Entries forgotten for want of room.";
    IDENTITY_MISSED "galen_identity_lookups_missed_total" Counter "Cgroups of events that were not found.";
    IDENTITY_CHANGES_LOST "galen_identity_changes_lost_total" Counter "Changes to the cgroup hierarchies that were not told.";
    IDENTITY_SCANS "galen_identity_scans_total" Counter "Scans of the cgroup hierarchies.";
    CRI_REQUESTS "galen_identity_cri_requests_total" Counter "Listings asked of the container runtime.";
    CRI_FAILURES "galen_identity_cri_failures_total" Counter "Listings that failed.";
    HEALTH "galen_health_status" Gauge "1 healthy, 0.5 degraded, 0 unhealthy, NaN unknown.";
    HEALTH_EVICTED "galen_health_subjects_evicted_total" Counter "Subjects forgotten because there were too many.";
    FAULTS "galen_faults_total" Counter "Fault signals.";
    HEALING "galen_healing_actions_total" Counter "Steps of healing actions.";
    OUTPUT_DROPPED "galen_output_dropped_total" Counter "Delivered events that an output had no room for.";
    HTTP_REQUESTS "galen_http_requests_total" Counter "HTTP requests answered.";
    HTTP_CONNECTIONS "galen_http_connections" Gauge "HTTP connections now.";
    HTTP_REFUSED "galen_http_connections_refused_total" Counter "HTTP connections refused because there were too many.";
    BUILD_INFO "galen_build_info" Info "The agent's version.";
    CPU_SECONDS "process_cpu_seconds_total" Counter "Total user and system CPU time spent in seconds.";
    RESIDENT "process_resident_memory_bytes" Gauge "Resident memory size in bytes.";
    VIRTUAL "process_virtual_memory_bytes" Gauge "Virtual memory size in bytes.";
    OPEN_FDS "process_open_fds" Gauge "Number of open file descriptors.";
    MAX_FDS "process_max_fds" Gauge "Maximum number of open file descriptors.";
    THREADS "process_threads" Gauge "Number of OS threads.";
    START_TIME "process_start_time_seconds" Gauge "Start time of the process since unix epoch in seconds.";
}
