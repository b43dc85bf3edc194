"""The fault catalogue: every fault that is injected, and the tests that do it. docs/reliability.md is made from this table.

A row is a fault and the tests that inject it; what is required is the tests' own first line. Tests stand where their
subject is tested; those of the whole daemon stand beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TC: Final = "tests/kernel/test_tc_contract.py"
ADOPTION: Final = "tests/core/test_adoption.py"
ENGINE: Final = "tests/core/test_engine.py"
SYSTEM: Final = "tests/system/test_recovery.py"
INSTANCES: Final = "tests/system/test_instances.py"
SHAPING: Final = "tests/kernel/test_shaping.py"
LINKS: Final = "tests/kernel/test_links.py"
EVENTS: Final = "tests/kernel/test_events.py"
NETLINK: Final = "tests/kernel/test_netlink.py"
CONTROL: Final = "tests/test_control.py"
HTTP: Final = "tests/test_http.py"
JOURNAL: Final = "tests/test_journal.py"
AUDIT: Final = "tests/test_audit.py"
CONFIG: Final = "tests/test_config.py"
YAML: Final = "tests/test_yaml_fuzz.py"
HERE: Final = "tests/faults"

CATALOGUE: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "Kernel and queueing disciplines": {
        "SIGKILL at random instants": (f"{HERE}/test_kill.py::test_sigkill_at_random_instants",),
        "SIGKILL between any two steps": (
            f"{HERE}/test_kill.py::test_sigkill_after_every_single_step",
            f"{ADOPTION}::test_half_a_tree_is_put_back_not_adopted",
        ),
        "restart while tc is silent": (
            f"{ADOPTION}::test_silence_at_the_start_is_a_fault",
            f"{ADOPTION}::test_a_tree_that_could_not_be_read_is_read_later",
            f"{ADOPTION}::test_a_release_while_tc_is_silent_outlives_a_restart",
        ),
        "a limit of an earlier run under `observe`": (f"{INSTANCES}::test_observe_touches_no_limit_of_an_earlier_run",),
        "SIGKILL within a takeover": (
            f"{HERE}/test_kill.py::test_sigkill_within_a_takeover",
            f"{HERE}/test_restarts.py::test_a_root_that_was_not_put_back_is_owed",
            f"{HERE}/test_restarts.py::test_a_root_that_stands_is_left_alone",
        ),
        "SIGKILL while limited": (
            f"{SYSTEM}::test_kill_leaves_the_limit_and_the_next_start_adopts_it",
            f"{SYSTEM}::test_cleanup_without_a_daemon",
        ),
        "foreign root before": (f"{SYSTEM}::test_foreign_root_before_is_warned_of_at_once",),
        "foreign root between read and write": (f"{HERE}/test_races.py::test_a_foreign_root_appears_before_an_install",),
        "foreign root in our place while limited": (f"{SYSTEM}::test_foreign_root_instead_of_ours_is_a_fault_not_a_prey",),
        "foreign root at a release": (
            f"{HERE}/test_races.py::test_a_foreign_root_takes_our_place_before_a_release",
            f"{ENGINE}::test_releasing_from_a_fault_leaves_the_foreign_root",
        ),
        "foreign root taken over": (
            f"{SYSTEM}::test_takeover_restores_exactly",
            f"{TC}::test_single_qdiscs_come_back_exactly",
            f"{ENGINE}::test_takeover_saves_before_it_replaces_and_restores",
        ),
        "foreign tree that could not be restored": (f"{TC}::test_roots_that_would_lose_something_are_refused",),
        "our root, class, leaf or filters changed by hand": (
            f"{SYSTEM}::test_foreign_hands_are_repaired",
            f"{TC}::test_foreign_hands_are_undone_on_the_real_kernel",
            f"{HERE}/test_races.py::test_our_root_goes_before_a_change",
        ),
        "a fight over a limit": (f"{ENGINE}::test_a_fight_is_bounded_and_shown",),
        "foreign class or filter inside our tree": (
            f"{TC}::test_foreign_objects_inside_are_told",
            f"{TC}::test_a_class_made_inner_shows",
            f"{TC}::test_what_only_looks_like_a_filter_of_ours_is_replaced",
        ),
        "traffic around the classes": (
            f"{HERE}/test_bypass.py::test_a_foreign_class_inside_the_limit",
            f"{HERE}/test_bypass.py::test_a_packet_socket_that_bypasses_qdiscs",
            f"{HERE}/test_bypass.py::test_honest_traffic_is_no_bypass",
            "tests/core/test_bypass.py::test_a_bypass_is_a_fault_until_ten_seconds_of_calm",
        ),
        "HTB, leaf kind or u32 missing": (
            f"{ENGINE}::test_a_kernel_without_fq_codel_or_u32_gets_a_limit_without_them",
            f"{ENGINE}::test_errnos_mean_what_they_say",
        ),
        "queue length 0, 1, 2; jumbo frames; no GSO": (f"{SHAPING}::test_odd_links_are_held_as_well",),
        "packet sizes changed under a limit, without an event": (
            f"{HERE}/test_sizes.py::test_big_tcp_under_a_standing_limit",
            f"{HERE}/test_sizes.py::test_another_size_under_a_standing_limit",
            f"{ENGINE}::test_what_changes_without_an_event_is_found_at_the_read_back",
        ),
        "another shaper's tree of thousands of classes": (
            f"{TC}::test_of_a_foreign_tree_only_the_root_is_read",
            f"{TC}::test_beside_a_crowd_of_qdiscs_the_same_is_read",
            f"{EVENTS}::test_foreign_hands_in_tc_are_seen",
        ),
        "clsact and BPF present": (f"{TC}::test_ingress_and_programs_are_untouched",),
        "multi-queue root and other sorts of links": (f"{TC}::test_every_sort_of_link_can_be_limited",),
        "each step of a batch failing": (
            f"{TC}::test_every_step_may_fail_on_the_real_kernel",
            f"{ENGINE}::test_each_failed_step_is_a_fault_that_heals",
        ),
        "rates from 34 Gbit/s": (
            f"{TC}::test_a_limit_reads_back_exactly",
            f"{SHAPING}::test_the_kernel_has_no_complaint",
        ),
        "what the real kernel would answer": (
            f"{TC}::test_the_fake_answers_and_ends_up_as_the_kernel",
            f"{TC}::test_traffic_moves_the_counters_that_tell_of_it",
            f"{TC}::test_a_link_that_was_never_up_shows_no_root",
        ),
    },
    "Links": {
        "deleted and made again": (
            f"{SYSTEM}::test_link_made_anew_is_limited_again",
            f"{EVENTS}::test_a_link_made_anew_is_another_link",
        ),
        "deleted and made again with its ifindex": (
            f"{HERE}/test_links.py::test_the_same_name_and_ifindex_made_anew",
            f"{ENGINE}::test_the_same_ifindex_made_anew_is_a_new_link",
        ),
        "gone between read and write (ENODEV)": (f"{HERE}/test_races.py::test_the_link_goes_before_a_write",),
        "counter reset": (f"{HERE}/test_links.py::test_a_counter_that_is_reset",),
        "counter wraps at 32 bits": (f"{HERE}/test_links.py::test_a_counter_that_wraps_at_32_bits",),
        "counter jumps by 2^62": (f"{HERE}/test_links.py::test_a_counter_that_jumps_beyond_all_reason",),
        "renamed": (f"{HERE}/test_links.py::test_renaming",),
        "renamed, or another MAC, while taken over": (f"{HERE}/test_restarts.py::test_a_taken_over_root_follows_its_link",),
        "flapping 100 times": (f"{HERE}/test_links.py::test_flapping",),
        "MTU, queue length or state changed": (f"{TC}::test_a_limit_outlives_changes_of_its_link",),
        "moved to another namespace and back": (f"{HERE}/test_links.py::test_another_namespace_and_back",),
        "arriving after the start": (
            f"{HERE}/test_events.py::test_events_repair_when_nothing_is_polled",
            f"{HERE}/test_links.py::test_a_link_that_arrives_beside_a_limited_one",
        ),
        "500 links made and deleted": (
            f"{HERE}/test_links.py::test_churn",
            f"{LINKS}::test_churn_never_breaks_a_sample",
            f"{ENGINE}::test_memory_is_bounded_under_churn",
            f"{HERE}/test_links.py::test_what_is_remembered_of_links_ends_at_its_bounds",
            f"{HERE}/test_links.py::test_incarnations_are_remembered_of_the_newest_links_alone",
        ),
        "odd names": (f"{HERE}/test_links.py::test_odd_names",),
    },
    "Netlink": {
        "ENOBUFS (tiny buffer, a thousand changes)": (
            f"{HERE}/test_events.py::test_events_flow_again_after_an_overrun",
            f"{EVENTS}::test_lost_events_lead_to_a_resync",
            f"{EVENTS}::test_a_resync_that_fails_is_tried_again",
        ),
        "interrupted dumps": (
            f"{NETLINK}::test_an_interrupted_dump_is_read_anew",
            f"{NETLINK}::test_a_dump_interrupted_for_ever_is_given_up",
        ),
        "EPERM": (
            f"{HERE}/test_adapters.py::test_a_capability_that_is_lost",
            f"{NETLINK}::test_a_refusal_names_the_missing_capability",
        ),
        "no answer at all": (
            f"{HERE}/test_stuck.py::test_sampling_goes_on_while_tc_is_stuck",
            f"{NETLINK}::test_silence_ends_with_a_time_out",
            f"{LINKS}::test_a_timed_out_sample_is_a_fault_and_the_next_is_clean",
            f"{ENGINE}::test_silence_of_the_kernel_is_a_fault_and_sampling_goes_on",
        ),
        "events lost, polling on": (f"{HERE}/test_events.py::test_polling_repairs_when_no_event_comes",),
        "polling off, events on": (f"{HERE}/test_events.py::test_events_repair_when_nothing_is_polled",),
        "events lost and sampling broken": (f"{HERE}/test_events.py::test_limits_are_looked_after_while_nothing_can_be_sampled",),
        "the first sample dropped": (f"{HERE}/test_events.py::test_a_first_sample_that_is_dropped_costs_no_adoption",),
    },
    "Time": {
        "SIGSTOP 3, 12, 30 s": (f"{HERE}/test_time.py::test_sigstop",),
        "suspend": (
            f"{HERE}/test_time.py::test_suspend_under_traffic",
            f"{HERE}/test_time.py::test_suspend_is_no_proof_of_quiet",
        ),
        "another boot clock (time namespace)": (f"{HERE}/test_time.py::test_another_boot_clock",),
        "wall clock ± 1 year": (
            f"{HERE}/test_time.py::test_a_wall_clock_that_steps_a_year",
            f"{HERE}/test_time.py::test_an_override_follows_the_wall_clock_both_ways",
            f"{HERE}/test_time.py::test_a_step_of_the_wall_clock_is_told_once",
        ),
        "CPU starvation": (
            f"{HERE}/test_time.py::test_a_starved_processor",
            f"{HERE}/test_time.py::test_starvation_costs_ticks_not_correctness",
            f"{LINKS}::test_slow_samples_are_dropped_and_counted",
        ),
    },
    "Configuration and state": {
        "hostile YAML": (
            f"{YAML}::test_every_hostile_file_is_refused",
            f"{YAML}::test_the_largest_hostile_files_cost_less_than_an_honest_one",
            f"{YAML}::test_no_case_needs_more_than_64_mib",
        ),
        "configuration cut at every offset": (
            f"{CONFIG}::test_a_cut_shipped_file_is_refused_or_means_the_same",
            f"{CONFIG}::test_a_cut_marked_file_is_refused_or_empty",
        ),
        "configuration invalid at a start": (f"{HERE}/test_files.py::test_an_invalid_configuration_at_the_start",),
        "1 000 SIGHUPs": (f"{HERE}/test_files.py::test_a_storm_of_sighup",),
        "SIGHUP during an apply": (f"{HERE}/test_files.py::test_sighup_during_an_apply",),
        "SIGUSR1 and SIGUSR2": (f"{HERE}/test_time.py::test_a_signal_for_log_rotation_is_ignored",),
        "files gone": (f"{HERE}/test_files.py::test_files_that_are_gone",),
        "disk full (64 KiB), read-only, without inodes": (
            f"{HERE}/test_files.py::test_a_disk_that_takes_nothing",
            f"{JOURNAL}::test_a_full_disk_keeps_the_old_journal_and_recovers",
            f"{AUDIT}::test_a_full_disk_costs_no_entry",
            f"{AUDIT}::test_a_disk_without_inodes_costs_no_entry",
        ),
        "a disk that hangs": (
            f"{JOURNAL}::test_saving_returns_at_once_while_the_disk_hangs",
            f"{AUDIT}::test_telling_returns_at_once_while_the_disk_hangs",
        ),
        "state empty, corrupt, deep or newer": (f"{HERE}/test_files.py::test_a_journal_that_cannot_be_used",),
        "state cut at every offset, any byte altered": (
            f"{JOURNAL}::test_truncation_at_every_offset_keeps_whole_records",
            f"{JOURNAL}::test_any_altered_byte_alters_no_record",
            "tests/test_requests.py::test_truncation_at_every_offset_keeps_whole_requests",
            "tests/test_overrides.py::test_a_cut_store_file_is_refused_at_every_offset",
            f"{AUDIT}::test_a_line_torn_at_any_byte_is_ended_and_marked",
            f"{AUDIT}::test_every_altered_byte_is_found_at_its_line",
        ),
        "audit trail read while it is rotated": (
            f"{AUDIT}::test_no_file_is_missed_while_it_is_moved",
            f"{AUDIT}::test_writers_readers_and_rotation_go_together",
        ),
        "state of another boot": (f"{JOURNAL}::test_saved_roots_end_with_their_boot",),
    },
    "Process and sockets": {
        "second instance": (
            f"{SYSTEM}::test_second_instance_refuses",
            f"{INSTANCES}::test_a_second_instance_of_every_kind_refuses_and_touches_nothing",
        ),
        "a stranger holds the instances' mark": (f"{INSTANCES}::test_who_does_not_count_holds_the_mark",),
        "SIGTERM under traffic": (f"{HERE}/test_process.py::test_sigterm_under_traffic",),
        "signals during the start": (f"{HERE}/test_process.py::test_signals_while_it_starts",),
        "restart": (f"{SYSTEM}::test_restart_adopts_without_a_gap",),
        "stale socket": (f"{CONTROL}::test_a_socket_left_by_a_killed_daemon_is_taken_over",),
        "symlink or wrong owner in the run directory": (
            f"{CONTROL}::test_what_stands_in_the_way_is_not_removed",
            f"{CONTROL}::test_a_linked_run_directory_is_refused",
            f"{CONTROL}::test_a_linked_lock_file_is_refused",
            f"{CONTROL}::test_what_belongs_to_somebody_else_is_refused",
        ),
        "unauthorised user": (f"{CONTROL}::test_all_groups_of_a_real_process_count",),
        "garbage, oversize and slow control clients": (
            f"{CONTROL}::test_garbage_is_answered_with_what_is_wrong",
            f"{CONTROL}::test_a_silent_client_is_told_and_dropped",
            f"{CONTROL}::test_a_client_that_does_not_read_is_dropped",
        ),
        "500 control clients": (
            f"{HERE}/test_process.py::test_five_hundred_silent_clients",
            f"{CONTROL}::test_five_hundred_clients_are_bounded",
        ),
        "metrics port taken": (
            f"{HERE}/test_process.py::test_a_taken_metrics_port",
            f"{HTTP}::test_a_taken_port_is_a_problem_and_retried",
        ),
        "silent TLS peer": (f"{HTTP}::test_silent_tls_peers_block_nobody", f"{HTTP}::test_an_unfinished_handshake_is_cut_off"),
        "slow-loris": (f"{HTTP}::test_a_slow_header_is_cut_off",),
        "scrapers that do not read": (
            f"{HTTP}::test_a_client_that_does_not_read_is_cut_off",
            f"{HTTP}::test_unread_answers_are_bounded_together",
        ),
        "certificate missing, bad, rotated": (
            f"{HTTP}::test_a_missing_certificate_is_a_problem_until_it_is_there",
            f"{HTTP}::test_a_bad_rotation_keeps_the_previous_pair",
            f"{HTTP}::test_a_rotated_certificate_is_picked_up",
        ),
        "EMFILE": (f"{HERE}/test_process.py::test_no_descriptor_is_left",),
        "blocked stderr pipe": (
            f"{HERE}/test_process.py::test_a_blocked_stderr",
            "tests/test_log.py::test_a_blocked_pipe_blocks_nobody_and_is_reported",
        ),
        "an error in each adapter": (
            f"{HERE}/test_adapters.py::test_a_failing_adapter_is_told_and_survived",
            f"{HERE}/test_adapters.py::test_a_store_that_fails_is_told_to_who_asked",
            f"{HERE}/test_adapters.py::test_a_control_socket_that_cannot_be_made_anew",
            f"{HERE}/test_adapters.py::test_a_manager_that_does_not_listen",
            f"{HERE}/test_adapters.py::test_counters_that_psutil_cannot_read",
            "tests/test_top_talkers.py::test_a_refusal_is_evidence_too",
        ),
        "a defect in the loop": (f"{HERE}/test_adapters.py::test_a_defect_in_the_loop_ends_the_daemon_and_no_limit",),
        "a defect beside the loop": (
            f"{HERE}/test_adapters.py::test_a_defect_beside_the_loop_costs_what_it_hit",
            f"{HERE}/test_adapters.py::test_a_server_that_a_defect_ends_takes_nothing_with_it",
            "tests/test_log.py::test_a_defect_costs_the_line_that_it_hit",
            "tests/test_top_talkers.py::test_a_defect_ends_one_reading",
            "tests/test_standby_sampler.py::test_a_defect_ends_one_performance",
            f"{HERE}/test_loop.py::test_a_defect_reaches_who_asked_and_ends_the_loop",
            f"{CONTROL}::test_a_defect_costs_one_answer",
        ),
        "clients while it starts and stops": (
            f"{HERE}/test_loop.py::test_a_question_before_the_loop_runs_waits_for_it",
            f"{HERE}/test_loop.py::test_a_question_after_the_loop_has_ended_is_refused_at_once",
            f"{HERE}/test_loop.py::test_a_question_that_has_begun_is_waited_for",
        ),
        "the loop hangs": (f"{HERE}/test_adapters.py::test_the_watchdog_is_fed_by_the_loop_alone",),
    },
    "Random and fuzz": {
        "anything, in any order": (
            "tests/core/test_machine.py::TestMachine",
            "tests/core/test_machine.py::test_what_once_went_wrong",
        ),
        "fuzz: netlink": (
            f"{NETLINK}::test_any_bytes_raise_only_the_documented_error",
            f"{LINKS}::test_noise_raises_only_the_documented_errors",
            f"{HERE}/test_fuzz.py::test_damaged_dumps_of_tc_are_read_or_a_fault",
        ),
        "fuzz: link events and socket dumps": (
            f"{HERE}/test_fuzz.py::test_damaged_link_messages_are_applied_or_malformed",
            "tests/kernel/test_sockets.py::test_noise_raises_only_the_documented_error",
            "tests/kernel/test_sockets.py::test_a_flipped_byte_raises_only_the_documented_error",
        ),
        "fuzz: overrides and requests": (
            "tests/test_overrides.py::test_no_json_escapes_the_config_error",
            "tests/test_requests.py::test_any_records_are_taken_without_an_exception",
        ),
        "fuzz: control protocol": (f"{CONTROL}::test_parsing_raises_the_documented_error_alone",),
        "fuzz: YAML": (
            f"{YAML}::test_mutants_are_read_or_refused",
            f"{YAML}::test_well_formed_nonsense_is_read_or_refused",
            f"{YAML}::test_punctuation_is_read_or_refused",
            f"{YAML}::test_a_cut_is_read_or_refused",
        ),
        "fuzz: inputs of known sorts": (f"{HERE}/test_fuzz.py::test_the_corpus_raises_only_the_documented_errors",),
        "fuzz: recordings": (f"{HERE}/test_fuzz.py::test_damaged_recordings_are_read_or_refused",),
        "fuzz: journal and audit trail": (
            f"{JOURNAL}::test_any_bytes_are_read_without_an_exception",
            f"{AUDIT}::test_any_bytes_are_verified_and_read_without_an_exception",
        ),
    },
}


def tests() -> tuple[str, ...]:
    """Every test of the catalogue once, in its order."""
    return tuple(dict.fromkeys(test for rows in CATALOGUE.values() for found in rows.values() for test in found))
