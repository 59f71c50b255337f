//! Methods that a wrapper of a backend or of a job hands on to what it wraps.

/// These methods of [`Claim`](super::Claim), handed on to a field.
macro_rules! forward_claim {
    ($field:ident: $($method:ident)+) => { $(forward_claim!(@ $field $method);)+ };
    (@ $field:ident queue) => {
        fn queue(&self) -> &str {
            self.$field.queue()
        }
    };
    (@ $field:ident number) => {
        fn number(&self) -> u64 {
            self.$field.number()
        }
    };
    (@ $field:ident kind) => {
        fn kind(&self) -> &str {
            self.$field.kind()
        }
    };
    (@ $field:ident payload) => {
        fn payload(&self) -> &[u8] {
            self.$field.payload()
        }
    };
    (@ $field:ident header) => {
        fn header(&self, key: &str) -> Option<&[u8]> {
            self.$field.header(key)
        }

        fn may_have_headers(&self) -> bool {
            self.$field.may_have_headers()
        }
    };
    (@ $field:ident attempt) => {
        fn attempt(&self) -> u32 {
            self.$field.attempt()
        }
    };
    (@ $field:ident crashes) => {
        fn crashes(&self) -> u32 {
            self.$field.crashes()
        }
    };
    (@ $field:ident enqueued_at) => {
        fn enqueued_at(&self) -> std::time::SystemTime {
            self.$field.enqueued_at()
        }
    };
    (@ $field:ident due_at) => {
        fn due_at(&self) -> Option<std::time::SystemTime> {
            self.$field.due_at()
        }
    };
    (@ $field:ident is_cancelled) => {
        fn is_cancelled(&self) -> bool {
            self.$field.is_cancelled()
        }
    };
    (@ $field:ident lease) => {
        fn lease(&self) -> Option<Box<dyn $crate::backend::Lease>> {
            self.$field.lease()
        }
    };
}

pub(crate) use forward_claim;

/// These methods of [`Backend`](super::Backend), handed on to a field.
macro_rules! forward_backend {
    ($field:ident: $($method:ident)+) => { $(forward_backend!(@ $field $method);)+ };
    (@ $field:ident capabilities) => {
        fn capabilities(&self) -> $crate::backend::Capabilities {
            self.$field.capabilities()
        }
    };
    (@ $field:ident on_end) => {
        fn on_end(&self, tell: $crate::backend::OnEnd) {
            self.$field.on_end(tell);
        }
    };
    (@ $field:ident queue) => {
        fn queue(&self, name: &str) -> Result<Box<dyn $crate::backend::Queue>, BackendError> {
            self.$field.queue(name)
        }
    };
    (@ $field:ident queue_names) => {
        fn queue_names(&self) -> Result<Vec<String>, BackendError> {
            self.$field.queue_names()
        }
    };
    (@ $field:ident consumer) => {
        fn consumer(
            &self,
            queues: &[$crate::backend::Served<'_>],
            choice: $crate::backend::Choice,
        ) -> Result<Box<dyn $crate::backend::Consumer>, BackendError> {
            self.$field.consumer(queues, choice)
        }
    };
    (@ $field:ident wake_consumers) => {
        fn wake_consumers(&self, queues: &[&str]) {
            self.$field.wake_consumers(queues);
        }
    };
    (@ $field:ident get) => {
        fn get(&self, key: &[u8]) -> Result<Option<$crate::backend::KeyValue>, BackendError> {
            self.$field.get(key)
        }
    };
    (@ $field:ident keys) => {
        fn keys(
            &self,
            prefix: &[u8],
        ) -> Result<Vec<(Vec<u8>, $crate::backend::KeyValue)>, BackendError> {
            self.$field.keys(prefix)
        }
    };
    (@ $field:ident each_key) => {
        fn each_key(
            &self,
            prefix: &[u8],
            see: &mut dyn FnMut(Vec<u8>, $crate::backend::KeyValue) -> bool,
        ) -> Result<(), BackendError> {
            self.$field.each_key(prefix, see)
        }
    };
    (@ $field:ident commit) => {
        fn commit(
            &self,
            changes: &$crate::backend::Changes<'_>,
        ) -> Result<Vec<Option<u64>>, BackendError> {
            self.$field.commit(changes)
        }
    };
    (@ $field:ident extend) => {
        fn extend(
            &self,
            leases: &[&dyn $crate::backend::Lease],
            tell: &mut dyn FnMut(usize, Result<bool, BackendError>),
        ) {
            self.$field.extend(leases, tell);
        }
    };
    (@ $field:ident damage) => {
        fn damage(&self) -> Vec<$crate::backend::Damaged> {
            self.$field.damage()
        }
    };
    (@ $field:ident flush) => {
        fn flush(&self) -> Result<(), BackendError> {
            self.$field.flush()
        }
    };
    (@ $field:ident close) => {
        fn close(&self) -> Result<(), BackendError> {
            self.$field.close()
        }
    };
}

pub(crate) use forward_backend;
