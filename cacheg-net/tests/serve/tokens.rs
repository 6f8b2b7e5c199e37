//! Who may ask.

use std::time::Duration;

use bytes::Bytes;
use cacheg_net::serve::Tokens;

use crate::support::{Running, Store, later, settings};

#[tokio::test]
async fn good_bad_and_expired() {
    let soon = humantime::format_rfc3339_millis(later(1)).to_string();
    let tokens = Tokens::parse(&format!("alpha\nbeta {soon}\nold 2020-01-01T00:00:00Z\n")).unwrap();
    let store = Store::with(&[("chunks/a", Bytes::from_static(b"x"))]);
    let server = Running::start(&store, settings(|all| all.tokens = Some(tokens))).await;
    let ask = async |path: &str, header: &str| {
        let headers = [("authorization", header)];
        server.get(path, if header.is_empty() { &[] } else { &headers }).await
    };
    for header in ["Bearer alpha", "bearer alpha", "Bearer beta"] {
        let reply = ask("/chunks/a", header).await;
        assert_eq!(reply.status, 200, "{header}");
        assert!(reply.header("cache-control").starts_with("private"), "{:?}", reply.headers);
    }
    for header in ["", "Bearer", "Bearer ", "Bearer alph", "Bearer alphaa", "Basic alpha", "alpha"] {
        let reply = ask("/chunks/a", header).await;
        assert_eq!(reply.status, 401, "{header}");
        assert!(reply.header("www-authenticate").starts_with("Bearer realm=\"cacheg\""), "{header}");
    }
    let reply = ask("/chunks/a", "Bearer old").await;
    assert_eq!((reply.status, reply.text().contains("expired")), (401, true));
    assert!(reply.header("www-authenticate").contains("expired"));
    // What is there is not told either.
    assert_eq!(ask("/none", "").await.status, 401);
    assert_eq!(ask("/-/metrics", "").await.status, 401);
    assert_eq!(ask("/-/metrics", "Bearer alpha").await.status, 200);
    assert_eq!(ask("/-/health", "").await.status, 200);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask("/chunks/a", "Bearer beta").await.status, 401);
}
