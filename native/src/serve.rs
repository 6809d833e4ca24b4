//! `wuerstchen serve`: the demo page and models over HTTP, from this machine.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::map_request;
use clap::Args;
use futures_lite::future::{or, pending};
use tower_http::services::ServeDir;
use tower_http::set_header::SetResponseHeaderLayer;

/// Arguments of `wuerstchen serve`.
#[derive(Args)]
pub(crate) struct ServeArgs {
    /// The folder to serve: the built demo page, or any folder with an index.html or browser bundles. The
    /// server sends the headers of cross-origin isolation, so that a page may only load files of other origins that
    /// allow it (CORS or CORP)
    #[arg(value_name = "DIR", default_value = "web/demo/dist")]
    folder: PathBuf,
    /// Address to listen on, or its name; with the default, only this machine can reach the server. On other machines,
    /// browsers make no pictures with a page that has no https: put a server with a certificate before this one
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes any free one
    #[arg(short, long, default_value_t = 8080)]
    port: u16,
}

/// The page that a folder's own address shows.
const INDEX: &str = "index.html";

/// Serves until it is interrupted.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    if !args.folder.is_dir() {
        let folder = args.folder.display();
        if args.folder.exists() {
            bail!("{folder}: expected a folder, found a file");
        }
        bail!("no folder {folder}: build the demo with `bash web/build.sh`, or name a folder");
    }
    if !args.folder.join(INDEX).exists() {
        tell!("{} has no {INDEX}: only the addresses of its files answer", args.folder.display());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (host, port) = (args.host.trim_matches(['[', ']']), args.port);
        let listener = tokio::net::TcpListener::bind((host, port))
            .await
            .with_context(|| format!("cannot listen on {host}, port {port}"))?;
        let address = listener.local_addr()?;
        crate::print(&format!("serving {} on http://{address}/", args.folder.display()))?;
        if !address.ip().is_loopback() {
            tell!("on other machines, the page makes pictures only over https");
        }
        let serve = async { axum::serve(listener, router(args)).await };
        let stop = async {
            // Without a handler, Ctrl-C ends the program at once, which is just as good.
            if tokio::signal::ctrl_c().await.is_err() {
                pending::<()>().await;
            }
            Ok(())
        };
        // The end does not wait for downloads, of which one may have stalled.
        Ok(or(serve, stop).await?)
    })
}

/// Asks for the whole file in place of a part that is only wanted if the file has not changed: `ServeDir` ignores
/// `If-Range` (RFC 9110, section 13.1.5), and could send a part of a newer file.
async fn without_conditional_range(mut request: Request) -> Request {
    if request.headers().contains_key(header::IF_RANGE) {
        request.headers_mut().remove(header::RANGE);
    }
    request
}

/// Serves files with their types, ranges and modification times. A browser may cache a file but must ask again, so that
/// it shows a new build at once. Pages are isolated from other origins, because only then does a browser let threads
/// share memory.
fn router(args: &ServeArgs) -> Router {
    let set = |name: HeaderName, value| {
        SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
    };
    Router::new()
        .fallback_service(ServeDir::new(&args.folder))
        .layer(map_request(without_conditional_range))
        .layer(set(header::CACHE_CONTROL, "no-cache"))
        .layer(set(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(set(header::REFERRER_POLICY, "no-referrer"))
        .layer(set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin"))
        .layer(set(HeaderName::from_static("cross-origin-embedder-policy"), "require-corp"))
}
