//! Copies of LMCache's source distribution with one fault each. A run is given one by `--lmcache-src`, which builds it beside the
//! environment under the digest of its tree, so that nothing of it can be taken for the released one's.

use camino::{Utf8Path, Utf8PathBuf};

/// Names the folder of the unpacked source distribution of LMCache 0.5.6.
const SOURCE: &str = "KV_CORRECTNESS_LMCACHE_SDIST";

/// A fault: in a file, text that must be there so many times, and what stands in its place.
pub(crate) struct Patch {
    pub(crate) name: &'static str,
    changes: &'static [(&'static str, &'static str, &'static str)],
}

const SERVER: &str = "lmcache/v1/multiprocess/modules/server_transfer.py";
const WORKER: &str = "lmcache/v1/multiprocess/transfer_context/worker_transfer.py";
const MEMORY: &str = "lmcache/v1/distributed/l1_manager.py";

/// Each third chunk is not written, and admitted as if it were: what its memory held before is served.
pub(crate) const SILENT_STORE: Patch = Patch {
    name: "silent store",
    changes: &[(
        SERVER,
        "                memory_obj.tensor.copy_(chunk_cpu)\n",
        "                self._stored = getattr(self, \"_stored\", 0) + 1\n                if self._stored % 3:\n                    \
         memory_obj.tensor.copy_(chunk_cpu)\n",
    )],
};

/// Every second load of a request fails, and says so.
pub(crate) const FAILING_RETRIEVE: Patch =
    Patch { name: "failing retrieve", changes: &[EACH_SECOND_READ_ASKED, EACH_SECOND_READ_FAILS] };

const EACH_SECOND_READ_ASKED: (&str, &str, &str) = (
    SERVER,
    "        \"\"\"Read prefetched objects and return serialized pickle payload.\"\"\"\n",
    "        \"\"\"Read prefetched objects and return serialized pickle payload.\"\"\"\n        self._asked = getattr(self, \"_asked\", 0) + \
     1\n",
);
const EACH_SECOND_READ_FAILS: (&str, &str, &str) = (
    SERVER,
    "                    success=True, data=pickle.dumps(chunks), context={}\n",
    "                    success=self._asked % 2 == 1, data=pickle.dumps(chunks), context={}\n",
);

/// Every second load of a request fails, and is taken for done.
pub(crate) const UNSAID_FAILURE: Patch = Patch {
    name: "failing retrieve, unsaid",
    changes: &[
        EACH_SECOND_READ_ASKED,
        EACH_SECOND_READ_FAILS,
        (WORKER, "        ok = src_buffers is not None\n", "        ok = True\n"),
    ],
};

/// A chunk that is given up stays known, at its old place, which others are given.
pub(crate) const STALE_CHUNK: Patch = Patch {
    name: "evicted chunk",
    changes: &[
        (MEMORY, "        self._memory_manager.free(", "        self._free("),
        (
            MEMORY,
            "    def _free_and_report_deleted(\n",
            "    def _free(self, objs):\n        self._memory_manager.free([obj for obj in objs if not hasattr(obj, \"given_up\")])\n\n    \
             def _free_and_report_deleted(\n",
        ),
        (
            MEMORY,
            "            need_to_free.append(entry.memory_obj)\n            del self._objects[key]\n            ret[key] = \
             L1Error.SUCCESS\n            successful_keys.append(key)\n\n        self._free_and_report_deleted(successful_keys, \
             need_to_free)\n        self._report_staging_gone(gone_keys)\n",
            "            need_to_free.append(entry.memory_obj)\n            ret[key] = L1Error.SUCCESS\n            \
             successful_keys.append(key)\n            given_up = copy.copy(entry.memory_obj)\n            given_up.given_up = True\n\
             \x20           self._objects[key] = L1ObjectState(\n                memory_obj=given_up,\n                \
             write_lock=TTLLock(self._write_ttl_seconds),\n                read_lock=TTLLock(self._read_ttl_seconds),\n\
             \x20               is_temporary=False,\n            )\n\n        self._free_and_report_deleted(successful_keys, \
             need_to_free)\n        self._report_staging_gone(gone_keys)\n",
        ),
        (MEMORY, "import threading\n", "import copy\nimport threading\n"),
    ],
};

/// Blocks are read eight stores late, though vLLM is told at once that they are free.
pub(crate) const LATE_STORE: Patch = Patch {
    name: "late store",
    changes: &[(
        WORKER,
        "        device = _get_kv_device(kv_caches)\n        synchronize_device(device)\n        result = \
         self._engine_driven_context.prepare_store(key, self._instance_id)\n",
        "        late = self.__dict__.setdefault(\"late\", [])\n        late.append((key, block_ids))\n        future = \
         MessagingFuture()\n        future.set_result(True)\n        if len(late) <= 8:\n            return future\n        key, \
         block_ids = late.pop(0)\n        device = _get_kv_device(kv_caches)\n        synchronize_device(device)\n        result = \
         self._engine_driven_context.prepare_store(key, self._instance_id)\n",
    )],
};

impl Patch {
    /// Makes such a copy in this folder, and returns the root of its tree.
    pub(crate) fn apply(&self, folder: &Utf8Path) -> Utf8PathBuf {
        let source = std::env::var(SOURCE).unwrap_or_else(|_| {
            panic!("{SOURCE} must name the folder of the unpacked source distribution of LMCache 0.5.6")
        });
        let root = folder.join("lmcache");
        copy(Utf8Path::new(&source), &root);
        for (file, from, to) in self.changes {
            let path = root.join(file);
            let text = fs_err::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{}: {path} has no {from:?}", self.name);
            fs_err::write(&path, text.replace(from, to)).unwrap();
        }
        root
    }
}

fn copy(from: &Utf8Path, to: &Utf8Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in from.read_dir_utf8().unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (to.join(entry.file_name()), entry.file_type().unwrap());
        if kind.is_dir() {
            copy(entry.path(), &path);
        } else if kind.is_file() {
            fs_err::copy(entry.path(), &path).unwrap();
        }
    }
}
