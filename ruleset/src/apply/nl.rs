//! libnftnl objects: allocated, filled and freed in one place.
#![allow(
    unsafe_code,
    reason = "libnftnl is a C library; every call to it is in this file"
)]

use std::ffi::{CString, c_char};
use std::ptr::NonNull;

use nftnl::nftnl_sys as sys;

use crate::render::code::{Attr, Expr};

/// Room that libnftnl may need for one message.
pub fn max_message() -> usize {
    usize::try_from(nftnl::nft_nlmsg_maxsize()).unwrap_or(1 << 17)
}

/// A C string; policy names hold no NUL, anything after one is cut.
fn c_string(text: &str) -> CString {
    let text = text.split('\0').next().unwrap_or_default();
    CString::new(text).unwrap_or_default()
}

/// libnftnl allocates a few hundred bytes; without them nothing can go on.
fn allocated<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}

fn attr(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn len(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

/// Header of a message about nftables.
pub struct Header {
    /// `NFT_MSG_*`.
    pub kind: u16,
    /// `NLM_F_*`, besides `NLM_F_REQUEST`.
    pub flags: u16,
    /// Sequence number.
    pub seq: u32,
}

impl Header {
    /// Appends a message to `buffer` whose payload `fill` writes.
    ///
    /// # Safety
    /// `fill` must write one nftables payload with libnftnl, which never
    /// exceeds `max_message()` bytes.
    unsafe fn append(&self, buffer: &mut Vec<u8>, fill: impl FnOnce(*mut libc::nlmsghdr)) {
        let at = buffer.len();
        buffer.reserve(max_message());
        // SAFETY: `max_message()` bytes are reserved from `at`; libnftnl
        // writes header and payload there and keeps nlmsg_len up to date.
        // Every earlier message was padded to 4 bytes, so `start` is aligned.
        unsafe {
            let start = buffer.as_mut_ptr().add(at).cast::<c_char>();
            let header = sys::nftnl_nlmsg_build_hdr(
                start,
                self.kind,
                attr(nfproto_inet()),
                self.flags,
                self.seq,
            );
            fill(header.cast());
            let written = (*header).nlmsg_len.next_multiple_of(4);
            buffer.set_len(at + usize::try_from(written).unwrap_or(0));
        }
    }
}

fn nfproto_inet() -> u32 {
    1
}

macro_rules! owned {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $alloc:ident, $free:ident, $build:ident) => {
        $(#[$doc])*
        pub struct $name(NonNull<$raw>);

        impl $name {
            fn alloc() -> Self {
                // SAFETY: plain allocation.
                Self(allocated(unsafe { sys::$alloc() }))
            }

            /// Appends the message that `header` describes, about this object.
            pub fn write(&self, header: &Header, buffer: &mut Vec<u8>) {
                // SAFETY: the payload is libnftnl's own for a live object.
                unsafe {
                    header.append(buffer, |nlh| sys::$build(nlh.cast(), self.0.as_ptr()));
                }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: allocated in `alloc`, freed once.
                unsafe { sys::$free(self.0.as_ptr()) };
            }
        }
    };
}

owned!(
    /// A table.
    Table, sys::nftnl_table, nftnl_table_alloc, nftnl_table_free, nftnl_table_nlmsg_build_payload
);
owned!(
    /// A chain.
    Chain, sys::nftnl_chain, nftnl_chain_alloc, nftnl_chain_free, nftnl_chain_nlmsg_build_payload
);
owned!(
    /// A stateful object.
    Object, sys::nftnl_obj, nftnl_obj_alloc, nftnl_obj_free, nftnl_obj_nlmsg_build_payload
);
owned!(
    /// A set, without its elements.
    Set, sys::nftnl_set, nftnl_set_alloc, nftnl_set_free, nftnl_set_nlmsg_build_payload
);
owned!(
    /// A rule.
    Rule, sys::nftnl_rule, nftnl_rule_alloc, nftnl_rule_free, nftnl_rule_nlmsg_build_payload
);

macro_rules! setters {
    ($name:ident, $u32:ident, $str:ident) => {
        impl $name {
            /// Sets a 32-bit attribute, host order.
            pub fn u32(self, number: u32, value: u32) -> Self {
                // SAFETY: live object; libnftnl copies the value.
                unsafe { sys::$u32(self.0.as_ptr(), attr(number), value) };
                self
            }

            /// Sets a name.
            pub fn text(self, number: u32, value: &str) -> Self {
                let value = c_string(value);
                // SAFETY: live object; libnftnl copies the string.
                unsafe { sys::$str(self.0.as_ptr(), attr(number), value.as_ptr()) };
                self
            }
        }
    };
}

setters!(Table, nftnl_table_set_u32, nftnl_table_set_str);
setters!(Chain, nftnl_chain_set_u32, nftnl_chain_set_str);
setters!(Object, nftnl_obj_set_u32, nftnl_obj_set_str);
setters!(Set, nftnl_set_set_u32, nftnl_set_set_str);
setters!(Rule, nftnl_rule_set_u32, nftnl_rule_set_str);

impl Table {
    /// The table called `name`.
    pub fn new(name: &str) -> Self {
        Self::alloc()
            .u32(sys::NFTNL_TABLE_FAMILY, nfproto_inet())
            .text(sys::NFTNL_TABLE_NAME, name)
            .u32(sys::NFTNL_TABLE_FLAGS, 0)
    }
}

impl Chain {
    /// A chain of `table`.
    pub fn new(table: &str, name: &str) -> Self {
        Self::alloc()
            .u32(sys::NFTNL_CHAIN_FAMILY, nfproto_inet())
            .text(sys::NFTNL_CHAIN_TABLE, table)
            .text(sys::NFTNL_CHAIN_NAME, name)
    }

    /// Sets the priority.
    pub fn priority(self, value: i32) -> Self {
        // SAFETY: live object.
        unsafe { sys::nftnl_chain_set_s32(self.0.as_ptr(), attr(sys::NFTNL_CHAIN_PRIO), value) };
        self
    }
}

impl Object {
    /// An object of `table`.
    ///
    /// The type comes first: libnftnl's setters depend on it.
    pub fn new(table: &str, name: &str, kind: u32) -> Self {
        Self::alloc()
            .u32(sys::NFTNL_OBJ_TYPE, kind)
            .u32(sys::NFTNL_OBJ_FAMILY, nfproto_inet())
            .text(sys::NFTNL_OBJ_TABLE, table)
            .text(sys::NFTNL_OBJ_NAME, name)
    }

    /// Sets an 8-bit attribute.
    pub fn u8(self, number: u32, value: u8) -> Self {
        // SAFETY: live object.
        unsafe { sys::nftnl_obj_set_u8(self.0.as_ptr(), attr(number), value) };
        self
    }

    /// Sets a 16-bit attribute, host order.
    pub fn u16(self, number: u32, value: u16) -> Self {
        // SAFETY: live object.
        unsafe { sys::nftnl_obj_set_u16(self.0.as_ptr(), attr(number), value) };
        self
    }
}

impl Set {
    /// A set of `table`; `id` names it within the transaction.
    pub fn new(table: &str, name: &str, id: u32) -> Self {
        Self::alloc()
            .u32(sys::NFTNL_SET_FAMILY, nfproto_inet())
            .text(sys::NFTNL_SET_TABLE, table)
            .text(sys::NFTNL_SET_NAME, name)
            .u32(sys::NFTNL_SET_ID, id)
    }

    /// A set of `table` that exists already.
    pub fn named(table: &str, name: &str) -> Self {
        Self::alloc()
            .u32(sys::NFTNL_SET_FAMILY, nfproto_inet())
            .text(sys::NFTNL_SET_TABLE, table)
            .text(sys::NFTNL_SET_NAME, name)
    }

    /// Sets a 64-bit attribute, host order.
    pub fn u64(self, number: u32, value: u64) -> Self {
        // SAFETY: live object; libnftnl copies the value.
        unsafe { sys::nftnl_set_set_u64(self.0.as_ptr(), attr(number), value) };
        self
    }

    /// Sets user data, which only nft reads.
    pub fn userdata(self, data: &[u8]) -> Self {
        // SAFETY: live object; libnftnl copies the bytes.
        unsafe {
            sys::nftnl_set_set_data(
                self.0.as_ptr(),
                attr(sys::NFTNL_SET_USERDATA),
                data.as_ptr().cast(),
                len(data),
            )
        };
        self
    }

    /// Adds an element; `flags` are `NFT_SET_ELEM_*`.
    pub fn element(&mut self, key: &[u8], flags: u32, object: Option<&str>) {
        // SAFETY: the element is live until `nftnl_set_elem_add` hands it to
        // the set, which frees it; libnftnl copies key and name.
        unsafe {
            let element = allocated(sys::nftnl_set_elem_alloc()).as_ptr();
            let key_attr = attr(sys::NFTNL_SET_ELEM_KEY);
            sys::nftnl_set_elem_set(element, key_attr, key.as_ptr().cast(), len(key));
            if flags != 0 {
                sys::nftnl_set_elem_set_u32(element, attr(sys::NFTNL_SET_ELEM_FLAGS), flags);
            }
            if let Some(object) = object.map(c_string) {
                let object_attr = attr(sys::NFTNL_SET_ELEM_OBJREF);
                sys::nftnl_set_elem_set_str(element, object_attr, object.as_ptr());
            }
            sys::nftnl_set_elem_add(self.0.as_ptr(), element);
        }
    }

    /// Appends a message with the elements added so far. They must fit into
    /// one: an attribute is at most 64 KiB long.
    pub fn write_elements(&self, header: &Header, buffer: &mut Vec<u8>) {
        // SAFETY: the payload is libnftnl's own for a live set.
        unsafe {
            header.append(buffer, |nlh| {
                sys::nftnl_set_elems_nlmsg_build_payload(nlh.cast(), self.0.as_ptr());
            });
        }
    }
}

impl Rule {
    /// Every rule of `table`, for deleting.
    pub fn all(table: &str) -> Self {
        Self::alloc()
            .u32(sys::NFTNL_RULE_FAMILY, nfproto_inet())
            .text(sys::NFTNL_RULE_TABLE, table)
    }

    /// A rule of `chain`.
    pub fn new(table: &str, chain: &str) -> Self {
        Self::alloc()
            .u32(sys::NFTNL_RULE_FAMILY, nfproto_inet())
            .text(sys::NFTNL_RULE_TABLE, table)
            .text(sys::NFTNL_RULE_CHAIN, chain)
    }

    /// Sets user data, where nft keeps the comment.
    pub fn userdata(self, data: &[u8]) -> Self {
        // SAFETY: live object; libnftnl copies the bytes.
        unsafe {
            sys::nftnl_rule_set_data(
                self.0.as_ptr(),
                attr(sys::NFTNL_RULE_USERDATA),
                data.as_ptr().cast(),
                len(data),
            )
        };
        self
    }

    /// Appends an expression. `set` gives name and id of the anonymous set
    /// that an attribute refers to by index.
    pub fn expr(&mut self, expr: &Expr, set: impl Fn(usize) -> (&'static str, u32)) {
        let name = c_string(&expr.name);
        // SAFETY: libnftnl returns null only for a name it does not know,
        // which would be a mistake in `render::code`.
        let raw = allocated(unsafe { sys::nftnl_expr_alloc(name.as_ptr()) }).as_ptr();
        for (number, value) in &expr.attrs {
            if let Attr::Set(index) = value {
                let (name, id) = set(*index);
                set_attr(raw, *number, &Attr::Text(name.to_owned()));
                set_attr(raw, number + 1, &Attr::U32(id));
            } else {
                set_attr(raw, *number, value);
            }
        }
        // SAFETY: the rule owns the expression from here on and frees it.
        unsafe { sys::nftnl_rule_add_expr(self.0.as_ptr(), raw) };
    }
}

fn set_attr(raw: *mut sys::nftnl_expr, number: u16, value: &Attr) {
    // SAFETY: `raw` is live; libnftnl copies values and checks lengths.
    unsafe {
        match value {
            Attr::U8(value) => sys::nftnl_expr_set_u8(raw, number, *value),
            Attr::U16(value) => sys::nftnl_expr_set_u16(raw, number, *value),
            Attr::U32(value) => sys::nftnl_expr_set_u32(raw, number, *value),
            Attr::U64(value) => sys::nftnl_expr_set_u64(raw, number, *value),
            Attr::Text(value) => {
                sys::nftnl_expr_set_str(raw, number, c_string(value).as_ptr());
            }
            Attr::Data(value) => {
                sys::nftnl_expr_set(raw, number, value.as_ptr().cast(), len(value));
            }
            Attr::Set(_) => {}
        }
    }
}
