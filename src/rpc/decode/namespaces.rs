//! The request of `createNamespaces` (control-api 4.7).

use super::{Invalid, TextList, bad, path, text};
use crate::{
    pause::{Kind, Mapping, Request},
    schema::conmon_capnp::conmon::{Namespace, create_namespaces_request},
};

/// The longest file name.
const NAME_LIMIT: usize = 255;
/// How many mappings the kernel takes (user_namespaces(7)).
const MAPPINGS_LIMIT: u32 = 340;

pub(crate) fn request(request: create_namespaces_request::Reader<'_>) -> Result<Request, Invalid> {
    let mut asked = [false; Kind::ALL.len()];
    for namespace in request.get_namespaces()? {
        let kind = kind(namespace?);
        for (asked, of) in asked.iter_mut().zip(Kind::ALL) {
            *asked |= of == kind;
        }
    }
    let kinds: Vec<_> = Kind::ALL.into_iter().zip(asked).filter(|(_, asked)| *asked).map(|(kind, _)| kind).collect();
    let has_user = kinds.contains(&Kind::User);
    Ok(Request {
        pod_id: pod_id(request.get_pod_id()?)?,
        base: path("basePath", request.get_base_path()?)?,
        kinds,
        uid_mappings: mappings("uidMappings", request.get_uid_mappings()?, has_user)?,
        gid_mappings: mappings("gidMappings", request.get_gid_mappings()?, has_user)?,
    })
}

/// A file name: whatever else is in it does no harm.
fn pod_id(reader: capnp::text::Reader<'_>) -> Result<String, Invalid> {
    let id = text("podId", reader)?;
    if id.is_empty() {
        return Err(bad("podId", "it is empty"));
    }
    if id.contains('/') || id == "." || id == ".." {
        return Err(bad("podId", "it is no file name"));
    }
    if id.len() > NAME_LIMIT {
        return Err(bad("podId", "it is longer than 255 bytes"));
    }
    Ok(id)
}

fn mappings(field: &'static str, list: TextList<'_>, has_user: bool) -> Result<Vec<Mapping>, Invalid> {
    if has_user && list.is_empty() {
        return Err(bad(field, "a user namespace needs at least one"));
    }
    if !has_user && !list.is_empty() {
        return Err(bad(field, "there is no user namespace to map"));
    }
    if list.len() > MAPPINGS_LIMIT {
        return Err(bad(field, "there are more than 340, which is all that the kernel takes"));
    }
    let mapping = |entry: capnp::Result<capnp::text::Reader<'_>>| {
        text(field, entry?)?.parse::<Mapping>().map_err(|error| bad(field, error.to_string()))
    };
    list.iter().map(mapping).collect()
}

fn kind(wire: Namespace) -> Kind {
    match wire {
        Namespace::Ipc => Kind::Ipc,
        Namespace::Net => Kind::Net,
        Namespace::Pid => Kind::Pid,
        Namespace::User => Kind::User,
        Namespace::Uts => Kind::Uts,
    }
}

pub(crate) fn wire(kind: Kind) -> Namespace {
    match kind {
        Kind::Ipc => Namespace::Ipc,
        Kind::Net => Namespace::Net,
        Kind::Pid => Namespace::Pid,
        Kind::User => Namespace::User,
        Kind::Uts => Namespace::Uts,
    }
}
