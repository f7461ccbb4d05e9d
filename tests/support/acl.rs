//! POSIX ACLs: the text `u::rw-,u:1000:r--,g::r--,m::r--,o::---` and the bytes of the xattr.

/// The value of `system.posix_acl_access` or `system.posix_acl_default`.
pub fn encode(text: &str) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for entry in text.split(',') {
        let parts: Vec<_> = entry.split(':').collect();
        let tag: u16 = match (parts[0], parts[1]) {
            ("u", "") => 1,
            ("u", _) => 2,
            ("g", "") => 4,
            ("g", _) => 8,
            ("m", _) => 0x10,
            ("o", _) => 0x20,
            _ => panic!("{entry}: not an ACL entry"),
        };
        let permissions = parts[2]
            .bytes()
            .fold(0_u16, |bits, c| bits << 1 | u16::from(c != b'-'));
        let id: u32 = if parts[1].is_empty() {
            u32::MAX
        } else {
            parts[1].parse().unwrap()
        };
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// The text of such a value.
pub fn decode(bytes: &[u8]) -> String {
    let entries = bytes[4..].chunks(8).map(|entry| {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let bits = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let (kind, id) = match tag {
            1 => ("u", String::new()),
            2 => ("u", id.to_string()),
            4 => ("g", String::new()),
            8 => ("g", id.to_string()),
            0x10 => ("m", String::new()),
            0x20 => ("o", String::new()),
            _ => panic!("ACL tag {tag:#x}"),
        };
        let flag = |bit: u16, letter| if bits & bit != 0 { letter } else { '-' };
        format!(
            "{kind}:{id}:{}{}{}",
            flag(4, 'r'),
            flag(2, 'w'),
            flag(1, 'x')
        )
    });
    entries.collect::<Vec<_>>().join(",")
}
