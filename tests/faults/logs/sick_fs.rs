use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// Nothing may be remembered by the kernel: the test sees what was written, in this order.
const TTL: Duration = Duration::ZERO;

/// A file system in this process: one directory whose files can only grow. It fails when it is told to, and keeps what was
/// renamed over or removed.
#[derive(Debug, Clone, Default)]
pub(super) struct SickFs(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The number of each name's file.
    names: HashMap<OsString, u64>,
    /// Contents in the order in which they were made; the first has the number 2.
    files: Vec<Vec<u8>>,
    /// Writes fail; the first to each file takes half of its bytes.
    fails: bool,
    /// Files that took such a half.
    half_taken: HashSet<u64>,
    /// Files that took nothing after that.
    failed: HashSet<u64>,
}

impl SickFs {
    /// Mounts a new one. It answers as long as the session is kept.
    pub(super) fn mount(at: &Path) -> (Self, BackgroundSession) {
        let fs = Self::default();
        let session = fuser::spawn_mount(fs.clone(), at, &Config::default()).expect("/dev/fuse is there");
        (fs, session)
    }

    /// From now on writes fail with `EIO`, after one to each file that takes half of its bytes; or work again.
    pub(super) fn set_failing(&self, fails: bool) {
        let mut state = self.state();
        state.fails = fails;
        state.half_taken.clear();
        state.failed.clear();
    }

    /// Whether a write to this file has failed since.
    pub(super) fn has_failed(&self, name: &str) -> bool {
        let state = self.state();
        state.names.get(OsStr::new(name)).is_some_and(|number| state.failed.contains(number))
    }

    /// All files that ever were, in the order in which they were made.
    pub(super) fn files(&self) -> Vec<Vec<u8>> {
        self.state().files.clone()
    }

    /// The file that has this name now.
    pub(super) fn read_name(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.names.get(OsStr::new(name)).map(|&number| state.files[index(number)].clone()).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with it")
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("few files") - 2
}

impl State {
    fn attributes(&self, number: u64) -> Option<FileAttr> {
        let directory = number == 1;
        let size = if directory { 0 } else { self.files.get(index(number))?.len() as u64 };
        Some(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if directory { FileType::Directory } else { FileType::RegularFile },
            perm: if directory { 0o755 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// How many of so many bytes a write to this file takes.
    fn takes(&mut self, number: u64, count: usize) -> Result<usize, Errno> {
        if !self.fails {
            return Ok(count);
        }
        if count >= 2 && self.half_taken.insert(number) {
            return Ok(count / 2);
        }
        self.failed.insert(number);
        Err(Errno::EIO)
    }
}

impl Filesystem for SickFs {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.state();
        match state.names.get(name).and_then(|&number| state.attributes(number)) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.state().attributes(inode.0) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.getattr(request, inode, handle, reply);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut state = self.state();
        state.files.push(Vec::new());
        let number = state.files.len() as u64 + 1;
        state.names.insert(name.to_owned(), number);
        let attributes = state.attributes(number).expect("made just now");
        reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.state();
        let Some(number) = state.names.remove(name) else { return reply.error(Errno::ENOENT) };
        state.names.insert(new_name.to_owned(), number);
        reply.ok();
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.state().names.remove(name) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.state();
        let file = &state.files[index(inode.0)];
        let start = usize::try_from(offset).map_or(file.len(), |offset| offset.min(file.len()));
        reply.data(&file[start..file.len().min(start + size as usize)]);
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state();
        match state.takes(inode.0, data.len()) {
            Ok(count) => {
                // Logs are only appended to.
                state.files[index(inode.0)].extend_from_slice(&data[..count]);
                reply.written(u32::try_from(count).expect("a write is no larger"));
            }
            Err(error) => reply.error(error),
        }
    }
}
