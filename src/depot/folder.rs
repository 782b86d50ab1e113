//! A folder as an object store, each step on a thread of its own. Main type: [`Folder`].
//!
//! Within a runtime, the library's store of a folder works on the runtime's threads for such, and to start one panics where the
//! system refuses it. On a thread that knows of no runtime it does everything at once.

use std::fmt;

use async_trait::async_trait;
use futures_util::future::FutureExt;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt, iter, once};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::thread::on_thread;

/// A folder of this machine.
#[derive(Debug, Clone)]
pub(super) struct Folder(LocalFileSystem);

impl Folder {
    pub(super) fn new(store: LocalFileSystem) -> Self {
        Self(store)
    }

    async fn step<T: Send + 'static>(
        self,
        step: impl AsyncFnOnce(LocalFileSystem) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let failed = |source| Error::Generic { store: "folder", source };
        let done = on_thread(move || step(self.0).now_or_never()).await;
        let done = done.map_err(|refused| failed(refused.into()))?;
        done.unwrap_or_else(|| Err(failed("it waits for something that is no disk".into())))
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[async_trait]
impl ObjectStore for Folder {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let path = path.clone();
        self.clone().step(async move |store| store.put_opts(&path, payload, options).await).await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "put in parts".to_owned(), implementer: self.to_string() })
    }

    /// The content is read when it is asked for, not before.
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let path = path.clone();
        let found = self.clone().step(async move |store| store.get_opts(&path, options).await).await?;
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        let bytes = self.clone().step(async move |_| found.bytes().await);
        let payload = GetResultPayload::Stream(once(bytes).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let folder = self.clone();
        let delete = move |path: Path| {
            folder.clone().step(async move |store| store.delete(&path).await.map(|()| path))
        };
        paths.and_then(delete).boxed()
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let below = below.cloned();
        let listed =
            self.clone().step(async move |store| store.list(below.as_ref()).try_collect::<Vec<_>>().await);
        once(listed).map_ok(|listed| iter(listed.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        let below = below.cloned();
        self.clone().step(async move |store| store.list_with_delimiter(below.as_ref()).await).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (from, to) = (from.clone(), to.clone());
        self.clone().step(async move |store| store.copy_opts(&from, &to, options).await).await
    }
}
