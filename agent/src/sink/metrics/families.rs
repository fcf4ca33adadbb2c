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
    CONNECT_PHASES "galen_tcp_connect_phase_seconds_total" Counter "Time that connects spent, by what they waited for.";
    DESTINATION_CONNECTS "galen_tcp_connect_destination_connects_total" Counter "TCP connects that ended, by destination.";
    DESTINATION_PHASES "galen_tcp_connect_destination_phase_seconds_total" Counter "Time that connects spent, by destination and what they waited for.";
    DESTINATION_RETRANSMITS "galen_tcp_connect_destination_syn_retransmits_total" Counter "SYNs sent again, by destination.";
    DESTINATIONS "galen_tcp_connect_destinations" Gauge "Destinations that are counted each on its own.";
    DESTINATIONS_WITHOUT_ROOM "galen_tcp_connect_destinations_without_room_total" Counter "Connects counted as other, as no more destinations fit.";
    DESTINATIONS_RETIRED "galen_tcp_connect_destinations_retired_total" Counter "Destinations that were idle and gave their place to others.";
    WRITES "galen_file_writes_total" Counter "Writes to regular files, or to anything under files: any, that did not fail.";
    WRITE_BYTES "galen_file_write_bytes_total" Counter "Bytes that these writes returned.";
    WRITE_ERRORS "galen_file_write_errors_total" Counter "Writes to regular files, or to anything under files: any, that failed.";
    WRITE_DURATION "galen_file_write_duration_seconds" Histogram "Time in the call of writes that did not fail.";
    HEAVIEST_WRITES "galen_file_heaviest_writes" Gauge "Writes that did not fail, of the files with most bytes.";
    HEAVIEST_BYTES "galen_file_heaviest_write_bytes" Gauge "Bytes that these writes returned.";
    HEAVIEST_ERRORS "galen_file_heaviest_write_errors" Gauge "Writes to these files that failed.";
    HEAVIEST_SECONDS "galen_file_heaviest_write_seconds" Gauge "Time in the call of those that did not fail.";
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
    UNCOUNTED "galen_events_uncounted_total" Counter "Events in no counter, as there was no room to keep their start.";
    PROBE_INFO "galen_probe_info" Info "Which hook each probe uses.";
    BPF_RUN_SECONDS "galen_bpf_run_seconds_total" Counter "Time that programs ran in the kernel.";
    BPF_RUNS "galen_bpf_runs_total" Counter "Times that programs ran in the kernel.";
    BPF_ESTIMATED_SECONDS "galen_bpf_estimated_seconds_total" Counter "Time that programs took, estimated by themselves.";
    COST "galen_cost_ratio" Gauge "Share of the node's CPU time that the agent and its programs take.";
    COST_BUDGET "galen_cost_budget_ratio" Gauge "Share of the node's CPU time that they may take before fewer records are made.";
    RECORDS_KEPT "galen_records_kept_ratio" Gauge "Share of notable events of which a record is made.";
    IDENTITY_ENTRIES "galen_identity_entries" Gauge "What is kept to name cgroups, containers and processes.";
    IDENTITY_BYTES "galen_identity_bytes" Gauge "Bytes that it takes.";
    IDENTITY_EVICTIONS "galen_identity_evictions_total" Counter "Entries forgotten for want of room.";
    IDENTITY_MISSED "galen_identity_lookups_missed_total" Counter "Cgroups of events that were not found.";
    IDENTITY_CHANGES_LOST "galen_identity_changes_lost_total" Counter "Changes to the cgroup hierarchies that were not told.";
    IDENTITY_SCANS "galen_identity_scans_total" Counter "Scans of the cgroup hierarchies.";
    CRI_REQUESTS "galen_identity_cri_requests_total" Counter "Listings asked of the container runtime.";
    CRI_FAILURES "galen_identity_cri_failures_total" Counter "Listings that failed.";
    BPF_MISSED_RUNS "galen_bpf_missed_runs_total" Counter "Runs left out by the kernel, as one like it was running on that CPU.";
    HEALTH "galen_health_status" Gauge "1 healthy, 0.5 degraded, 0 unhealthy, NaN unknown.";
    HEALTH_EVICTED "galen_health_subjects_evicted_total" Counter "Subjects forgotten because there were too many.";
    FAULTS "galen_faults_total" Counter "Fault signals.";
    FAULTS_UNTRACKED "galen_faults_untracked_total" Counter "Breaches that no rule followed because too many subjects breached at once.";
    HEALING "galen_healing_actions_total" Counter "Steps of healing actions.";
    HEALING_DROPPED "galen_healing_events_dropped_total" Counter "Healing events that were not said; the audit trail has them.";
    HEALING_EVICTED "galen_healing_subjects_evicted_total" Counter "Subjects whose cool-down was forgotten because there were too many.";
    AUDIT_FAILURES "galen_audit_failures_total" Counter "Lines that are missing from the audit trail.";
    INCIDENTS_WRITTEN "galen_incidents_written_total" Counter "Incidents written down.";
    INCIDENTS_EVICTED "galen_incidents_evicted_total" Counter "Files of incidents removed to make room.";
    INCIDENTS_FAILED "galen_incidents_failed_total" Counter "Incidents, or victims of one, that were not written down.";
    INCIDENTS_FILES "galen_incidents_files" Gauge "Files of incidents now.";
    INCIDENTS_FILE_BYTES "galen_incidents_file_bytes" Gauge "Bytes of those files.";
    RECORDER_EVENTS "galen_incidents_recorder_events" Gauge "Connects and writes in the flight recorder now.";
    RECORDER_BYTES "galen_incidents_recorder_bytes" Gauge "Bytes of the flight recorder now.";
    RECORDER_EVICTED "galen_incidents_recorder_evicted_total" Counter "Connects and writes that made room for newer ones.";
    INSPEC_HEALTH "inspec_health_status" Gauge "1 where the target works, 0 where it is unhealthy, NaN unknown.";
    INSPEC_RATIO "inspec_success_ratio" Gauge "Share of the last 64 checks that succeeded.";
    INSPEC_CHECKS "inspec_checks_total" Counter "Checks that ended.";
    INSPEC_LAST "inspec_last_check_timestamp_seconds" Gauge "When the last check ended.";
    INSPEC_DURATION "inspec_check_duration_seconds" Histogram "What checks took.";
    INSPEC_LAG "inspec_schedule_lag_seconds" Histogram "How long after they were due checks began.";
    INSPEC_TARGETS "inspec_targets" Gauge "Targets by the state of their check.";
    INSPEC_RUNNING "inspec_checks_running" Gauge "Checks that run.";
    INSPEC_PERMITTED "inspec_checks_permitted" Gauge "Checks that may run at once.";
    INSPEC_SHED "inspec_checks_shed_total" Counter "Checks that were not made, as not all could run.";
    INSPEC_OVERRUN "inspec_checks_overrun_total" Counter "Checks that were due while the one before still ran.";
    INSPEC_DOUBT "inspec_self_doubt" Gauge "1 while failures are not held against targets, as the agent is late or its control target fails.";
    INSPEC_CHANGES_LOST "inspec_changes_lost_total" Counter "Changes of targets' health that found no room on their way to events and faults.";
    PROBE_SUCCESS "probe_success" Gauge "Whether the last check succeeded.";
    PROBE_DURATION "probe_duration_seconds" Gauge "What the last check took.";
    PROBE_TIMEOUT "probe_timeout_seconds" Gauge "What a check may take.";
    PROBE_PHASES "probe_http_duration_seconds" Gauge "What the phases of the last HTTP check took.";
    PROBE_STATUS "probe_http_status_code" Gauge "The HTTP status of the last check.";
    PROBE_EXPIRY "probe_ssl_earliest_cert_expiry" Gauge "When the first certificate of the chain ends that does.";
    OUTPUT_DROPPED "galen_output_dropped_total" Counter "Delivered events that an output had no room for.";
    HTTP_REQUESTS "galen_http_requests_total" Counter "HTTP requests answered.";
    HTTP_CONNECTIONS "galen_http_connections" Gauge "HTTP connections now.";
    PEERS_REFUSED "galen_api_peers_refused_total" Counter "Requests on the local socket by peers that may not use it.";
    HTTP_REFUSED "galen_http_connections_refused_total" Counter "HTTP connections refused because there were too many, and those put out before they asked for anything.";
    BUILD_INFO "galen_build_info" Info "The agent's version.";
    CPU_SECONDS "process_cpu_seconds_total" Counter "Total user and system CPU time spent in seconds.";
    RESIDENT "process_resident_memory_bytes" Gauge "Resident memory size in bytes.";
    VIRTUAL "process_virtual_memory_bytes" Gauge "Virtual memory size in bytes.";
    OPEN_FDS "process_open_fds" Gauge "Number of open file descriptors.";
    MAX_FDS "process_max_fds" Gauge "Maximum number of open file descriptors.";
    THREADS "process_threads" Gauge "Number of OS threads.";
    START_TIME "process_start_time_seconds" Gauge "Start time of the process since unix epoch in seconds.";
}
