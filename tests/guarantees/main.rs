//! Tests of the documented guarantees, through the public API: a module for each guarantee
//! (`g1_...` to `g11_...`), for each part of the API (`api_...`), and for recovery.

mod api_batches;
mod api_cancel;
mod api_dead_letters;
mod api_deliveries;
mod api_hold;
mod api_looking;
mod api_names;
mod api_observers;
mod api_options;
mod api_pause;
mod api_payloads;
mod api_queue_sets;
mod api_queues;
mod api_stats;
mod api_transactions;
mod api_workers;
mod g10_under_load;
mod g10_views;
mod g11_transactions;
mod g12_keys;
mod g1_at_least_once;
mod g2_crashes;
mod g2_no_poison;
mod g3_no_silent_loss;
mod g4_no_needless_duplicate;
mod g5_order;
mod g6_naps;
mod g6_progress;
mod g6_subscribers;
mod g6_user_code;
mod g7_one_process;
mod g8_failed_flush;
mod g9_address_space;
mod g9_disk_full;
mod g9_waiting_jobs;
mod recovery;
mod support;

/// The entry point of child processes, see [`support::Child`]. Does nothing in a normal test run.
#[test]
#[ignore = "the entry point of child processes, not a test"]
fn child() {
    support::play_role(&[
        ("enqueue", g1_at_least_once::enqueue_until_killed),
        ("work", g1_at_least_once::work_until_killed),
        ("cancel", api_cancel::cancel_until_killed),
        ("abort", g2_no_poison::abort_on_poison),
        ("poison", g2_crashes::work_beside_poison),
        ("deploy", g2_crashes::end_while_handlers_work),
        ("bury", g2_no_poison::bury_all),
        ("log into the queue", g6_subscribers::log_into_the_queue),
        ("panic at events", g6_subscribers::panic_at_events),
        ("close at events", g6_subscribers::close_at_events),
        ("hold", g7_one_process::hold_the_queue),
        ("count threads", api_queues::count_threads),
        ("few descriptors", api_queues::open_with_few_descriptors),
        ("fill", g9_disk_full::fill_a_small_file_system),
        ("reopen", g9_disk_full::reopen_on_a_full_file_system),
        ("delay", g9_waiting_jobs::delay_on_a_small_file_system),
        ("hit the limit", g9_disk_full::hit_the_file_size_limit),
        (
            "short of address space",
            g9_address_space::exceed_the_address_space,
        ),
        ("replay", api_dead_letters::replay_all),
        ("pass on", g11_transactions::pass_on_until_killed),
        ("change keys", g12_keys::change_keys_until_killed),
        ("work under views", g10_under_load::work_under_views),
    ]);
}
