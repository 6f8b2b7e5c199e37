//! A link that several requests share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::control::{Scheduler, Waiting};

/// So many transfers at a time over all requests; whose is next, a [scheduler](crate::control::schedulers) says.
#[derive(Debug)]
pub struct SharedLink {
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    scheduler: Box<dyn Scheduler>,
    free: usize,
    waiting: Vec<(Waiting, oneshot::Sender<Turn>)>,
}

/// The right to transfer, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    link: Arc<SharedLink>,
}

impl SharedLink {
    /// A link for `transfers` (at least one) at a time.
    pub fn new(scheduler: Box<dyn Scheduler>, transfers: usize) -> Arc<Self> {
        let state = State { scheduler, free: transfers.max(1), waiting: Vec::new() };
        Arc::new(Self { begun: Instant::now(), state: Mutex::new(state) })
    }

    /// The time since the link was made, which all deadlines are told in.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Waits for a turn. Whoever drops the future does not wait any more.
    pub async fn turn(self: &Arc<Self>, waiting: Waiting) -> Option<Turn> {
        let (sender, turn) = oneshot::channel();
        self.lock().waiting.push((waiting, sender));
        self.next();
        turn.await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic is half done while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets those transfer who can.
    fn next(self: &Arc<Self>) {
        loop {
            let sender = {
                let mut state = self.lock();
                state.waiting.retain(|(_, sender)| !sender.is_closed());
                if state.free == 0 {
                    return;
                }
                let requests: Vec<Waiting> = state.waiting.iter().map(|(waiting, _)| *waiting).collect();
                let picked = state.scheduler.pick(self.now(), &requests);
                let Some(index) = picked.filter(|index| *index < requests.len()) else { return };
                state.free -= 1;
                state.waiting.swap_remove(index).1
            };
            // A turn that nobody takes any more comes back when it is dropped here, outside of the lock.
            let _ = sender.send(Turn { link: self.clone() });
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.link.lock().free += 1;
        self.link.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::schedulers;

    async fn order(scheduler: &str, requests: &[Waiting]) -> Vec<usize> {
        let link = SharedLink::new(schedulers().build(scheduler).unwrap(), 1);
        let first = link.turn(Waiting { deadline: Duration::ZERO, chunk: 0, bytes: 0 }).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (index, waiting) in requests.iter().copied().enumerate() {
            let (link, order) = (link.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let turn = link.turn(waiting).await;
                order.lock().unwrap().push(index);
                tokio::task::yield_now().await;
                drop(turn);
            }));
        }
        // One that gave up before its turn takes nobody's.
        let gone = tokio::spawn({
            let link = link.clone();
            async move { link.turn(Waiting { deadline: Duration::ZERO, chunk: 0, bytes: 0 }).await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        tokio::task::yield_now().await;
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        Arc::try_unwrap(order).unwrap().into_inner().unwrap()
    }

    #[tokio::test]
    async fn turns_go_by_the_scheduler() {
        let request =
            |seconds, chunk, bytes| Waiting { deadline: Duration::from_secs(seconds), chunk, bytes };
        let requests = [request(900, 1, 0), request(500, 2, 9), request(700, 0, 5)];
        assert_eq!(order("deadline", &requests).await, [1, 2, 0]);
        assert_eq!(order("fair", &requests).await, [0, 2, 1]);
        assert_eq!(order("batch", &requests).await, [2, 0, 1]);
    }
}
