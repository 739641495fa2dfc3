use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;

use futures_util::FutureExt as _;

use super::*;
use crate::server::Limits;

/// A body that delivers its pieces one by one, then stays pending or ends.
struct Pieces {
    pieces: VecDeque<Bytes>,
    ends: bool,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

const LARGEST: usize = 1 << 20;

fn budget(each: usize, all: usize) -> Arc<Budget> {
    let limits = Limits { unfinished_each: each, unfinished: all, ..Limits::default() };
    Arc::new(Budget::new("test", &limits))
}

fn account(all: &Arc<Budget>) -> Arc<Account> {
    Arc::new(Account::new(Arc::clone(all), Peer::default()))
}

fn intake(account: &Arc<Account>, pieces: &[&[u8]], ends: bool) -> Intake<Pieces> {
    let pieces = pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
    Intake::new(Pieces { pieces, ends }, Arc::clone(account), LARGEST)
}

fn message(length: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    bytes.extend((0..length).map(|at| u8::try_from(at % 251).unwrap()));
    bytes
}

async fn next(intake: &mut Intake<Pieces>) -> Option<Result<Bytes, Status>> {
    let frame = poll_fn(|context| Pin::new(&mut *intake).poll_frame(context)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap()).map_err(Status::from_error))
}

async fn whole(mut intake: Intake<Pieces>) -> Vec<Bytes> {
    let mut all = Vec::new();
    while let Some(data) = next(&mut intake).await {
        all.push(data.unwrap());
    }
    all
}

/// Wherever the bytes are split, the same messages come out, and never a part of one.
#[tokio::test]
async fn messages_are_complete_wherever_they_are_split() {
    let (account, mut all) = (account(&budget(LARGEST, LARGEST)), Vec::new());
    for length in [0, 1, 300, 0, 7] {
        all.extend(message(length));
    }
    let ends: Vec<usize> = vec![5, 11, 316, 321, 333];
    for first in 0..=all.len() {
        for second in (first..=all.len()).step_by(7) {
            let pieces = [&all[..first], &all[first..second], &all[second..]];
            let pieces: Vec<&[u8]> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
            let mut at = 0;
            for data in whole(intake(&account, &pieces, true)).await {
                assert_eq!(data, all[at..at + data.len()]);
                at += data.len();
                assert!(ends.contains(&at), "cut at {first} and {second}: {at}");
            }
            assert_eq!(at, all.len(), "cut at {first} and {second}");
        }
    }
    assert_eq!(account.used.load(Relaxed), 0);
}

#[tokio::test]
async fn an_incomplete_message_at_the_end_is_passed_on_and_releases_its_share() {
    let account = account(&budget(LARGEST, LARGEST));
    let part = &message(300)[..100];
    assert_eq!(whole(intake(&account, &[part], true)).await, [part]);
    assert_eq!(account.used.load(Relaxed), 0);
}

#[tokio::test]
async fn messages_that_tonic_rejects_are_not_buffered() {
    let account = account(&budget(LARGEST, LARGEST));
    let mut too_long = vec![0];
    too_long.extend(u32::MAX.to_be_bytes());
    for start in [&too_long[..], b"\x07bad"] {
        let mut intake = intake(&account, &[start, b"more"], true);
        assert_eq!(next(&mut intake).await.unwrap().unwrap(), start);
        assert_eq!(next(&mut intake).await.unwrap().unwrap(), "more");
    }
    assert_eq!(account.used.load(Relaxed), 0);
}

/// Each byte is charged for its buffer, which grows with the bytes that arrive, not with the
/// announced length.
#[tokio::test(start_paused = true)]
async fn the_budgets_bound_what_is_kept() {
    let all = budget(10 * CALL, 15 * CALL);
    let (one, other) = (account(&all), account(&all));
    let announced = &message(LARGEST)[..5];
    let mut waiting: Vec<_> = (0..9).map(|_| intake(&one, &[announced], false)).collect();
    for intake in &mut waiting {
        assert!(intake.first().now_or_never().is_none());
    }
    let used = one.used.load(Relaxed);
    assert!(used <= 9 * (CALL + 64), "{used}: the announced length is not reserved");
    let mut refused = intake(&one, &[&message(LARGEST)[..CALL]], false);
    let status = refused.first().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("this connection has more than 81920 bytes"), "{status:?}");
    // Another connection still has budget, up to what is left of the server's budget.
    let mut others: Vec<_> = (0..5).map(|_| intake(&other, &[], false)).collect();
    for intake in &mut others {
        assert!(intake.first().now_or_never().is_none());
    }
    let status = intake(&other, &[], false).first().await.unwrap_err();
    assert!(status.message().contains("the connections of this server have"), "{status:?}");
    // A message in one piece needs no budget.
    let piece = message(300);
    assert!(intake(&other, &[&piece], true).first().await.is_ok());
    drop((waiting, others, refused));
    assert_eq!((one.used.load(Relaxed), all.used.load(Relaxed)), (0, 0));
}

/// Small requests of a client that has done nothing wrong.
#[tokio::test]
async fn a_connection_has_a_share_of_its_own() {
    let all = budget(20 * CALL, 10 * CALL);
    let (full, honest) = (account(&all), account(&all));
    let mut waiting: Vec<_> = (0..10).map(|_| intake(&full, &[], false)).collect();
    for intake in &mut waiting {
        assert!(intake.first().now_or_never().is_none());
    }
    assert!(intake(&full, &[], false).first().await.is_err(), "the budget of the server is used");
    let mut own = [intake(&honest, &[], false), intake(&honest, &[], false)];
    for intake in &mut own {
        assert!(intake.first().now_or_never().is_none());
    }
    assert!(intake(&honest, &[], false).first().await.is_err(), "more than its share");
    drop((waiting, own));
    assert_eq!((honest.used.load(Relaxed), all.used.load(Relaxed)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_must_not_take_too_long() {
    let account = account(&budget(LARGEST, LARGEST));
    let mut slow = intake(&account, &[&message(300)[..100]], false);
    let began = tokio::time::Instant::now();
    let status = slow.first().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
    assert_eq!(began.elapsed().as_secs(), 60);
    // There is no timeout between two messages.
    let piece = message(300);
    let mut idle = intake(&account, &[&piece], false);
    assert!(next(&mut idle).await.unwrap().is_ok());
    let silent = tokio::time::timeout(Duration::from_secs(3_600), next(&mut idle)).await;
    assert!(silent.is_err());
}
