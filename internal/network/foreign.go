package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/nl"
)

// Packets must be accepted by every firewall on the machine, ours cannot overrule another. Docker
// drops forwarded packets by default, and offers a chain where others say what is theirs.
const (
	dockerTable = "filter"
	dockerChain = "DOCKER-USER"
)

// foreignChain is somebody else's base chain for forwarded packets.
type foreignChain struct {
	family byte
	table  string
	chain  string
	drops  bool // by default
}

func (c foreignChain) String() string {
	family := map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip"}[c.family]
	return family + " " + c.table + " " + c.chain
}

// chains lists all chains that see forwarded IPv4 packets and are not ours, and whether Docker's
// chain exists.
func foreignChains(nf *nl.Conn) (forward []foreignChain, docker bool, err error) {
	err = nf.Get(nl.Message{
		Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN, Flags: unix.NLM_F_DUMP,
		Body: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, What: "list firewall chains",
	}, func(typ uint16, body []byte) error {
		if typ != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN || len(body) < 4 {
			return nil
		}
		c := foreignChain{family: body[0]}
		isForward := false
		for typ, value := range nl.Attributes(body[4:]) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				c.table = string(bytes.TrimRight(value, "\x00"))
			case unix.NFTA_CHAIN_NAME:
				c.chain = string(bytes.TrimRight(value, "\x00"))
			case unix.NFTA_CHAIN_HOOK:
				for typ, value := range nl.Attributes(value) {
					if typ == unix.NFTA_HOOK_HOOKNUM && len(value) == 4 {
						isForward = binary.BigEndian.Uint32(value) == hookForward
					}
				}
			case unix.NFTA_CHAIN_POLICY:
				c.drops = len(value) == 4 && binary.BigEndian.Uint32(value) == verdictDrop
			}
		}
		if c.family != unix.NFPROTO_INET && c.family != unix.NFPROTO_IPV4 {
			return nil
		}
		if c.family == unix.NFPROTO_IPV4 && c.table == dockerTable && c.chain == dockerChain {
			docker = true
		}
		if isForward && c.table != tableName {
			forward = append(forward, c)
		}
		return nil
	})
	return forward, docker, err
}

// dockerRule is "-i dtn+ -j ACCEPT" (or -o) exactly as the iptables tool of the nftables kind
// writes it, so that it can list and delete it.
func dockerRule(key expr.MetaKey) []expr.Any {
	return slices.Concat(ifname(key, linkPrefix+"*"), []expr.Any{&expr.Counter{}}, accept())
}

// passForeignFirewalls sees to it that other firewalls let sandboxes' packets through as far as
// that is ours to do, and says in words what stands in the way otherwise.
func (h *Host) passForeignFirewalls() (warnings []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	forward, docker, err := foreignChains(h.nf)
	if err != nil {
		return []string{fmt.Sprintf("cannot look at the other firewalls of this host: %v", err)}
	}
	if docker {
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			handles, err := findRules(h.nf, key)
			if err == nil && len(handles) > 0 {
				continue
			}
			b := &batch{}
			b.putRule(unix.NFPROTO_IPV4, dockerTable, dockerChain, unix.NLM_F_CREATE, dockerRule(key)) // at the head
			if err = errors.Join(err, b.commit(h.nf)); err != nil {
				warnings = append(warnings, fmt.Sprintf("cannot put a rule into Docker's chain %s: %v", dockerChain, err))
			}
		}
	}
	for _, c := range forward {
		if c.drops && !(docker && c.family == unix.NFPROTO_IPV4 && c.table == dockerTable) {
			warnings = append(warnings, fmt.Sprintf(
				"the firewall chain %q drops forwarded packets by default; let interfaces named %s* through in it (accept packets that come in or go out there)", c, linkPrefix))
		}
	}
	if !docker && legacyForwardDrops() {
		warnings = append(warnings, fmt.Sprintf(
			"the legacy iptables filter drops forwarded packets by default; run: iptables-legacy -I FORWARD -i %[1]s+ -j ACCEPT; iptables-legacy -I FORWARD -o %[1]s+ -j ACCEPT", linkPrefix))
	}
	return warnings
}

// findRules finds our rules in Docker's chain.
func findRules(nf *nl.Conn, key expr.MetaKey) (handles []uint64, err error) {
	var body nl.Buffer
	body.String(unix.NFTA_RULE_TABLE, dockerTable).String(unix.NFTA_RULE_CHAIN, dockerChain)
	wantKey := binary.BigEndian.AppendUint32(nil, uint32(key))
	err = nf.Get(nl.Message{
		Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: unix.NLM_F_DUMP,
		Body: append([]byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}, body.Bytes()...), What: "list Docker's firewall rules",
	}, func(typ uint16, body []byte) error {
		if typ != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE || len(body) < 4 {
			return nil
		}
		var handle uint64
		var table, chain string
		var names []string
		ours, name := false, false
		for typ, value := range nl.Attributes(body[4:]) {
			switch typ {
			case unix.NFTA_RULE_TABLE:
				table = string(bytes.TrimRight(value, "\x00"))
			case unix.NFTA_RULE_CHAIN:
				chain = string(bytes.TrimRight(value, "\x00"))
			case unix.NFTA_RULE_HANDLE:
				if len(value) == 8 {
					handle = binary.BigEndian.Uint64(value)
				}
			case unix.NFTA_RULE_EXPRESSIONS:
				for _, element := range nl.Attributes(value) {
					for typ, value := range nl.Attributes(element) {
						switch typ {
						case unix.NFTA_EXPR_NAME:
							names = append(names, string(bytes.TrimRight(value, "\x00")))
						case unix.NFTA_EXPR_DATA:
							for typ, value := range nl.Attributes(value) {
								switch {
								case len(names) == 1 && typ == unix.NFTA_META_KEY:
									ours = bytes.Equal(value, wantKey)
								case len(names) == 2 && typ == unix.NFTA_CMP_DATA:
									for _, value := range nl.Attributes(value) {
										name = string(value) == linkPrefix
									}
								}
							}
						}
					}
				}
			}
		}
		if table == dockerTable && chain == dockerChain && ours && name && handle != 0 &&
			slices.Equal(names, []string{"meta", "cmp", "counter", "immediate"}) {
			handles = append(handles, handle)
		}
		return nil
	})
	return handles, err
}

// removeForeignRules undoes what passForeignFirewalls did.
func removeForeignRules(nf *nl.Conn) error {
	_, docker, err := foreignChains(nf)
	if err != nil || !docker {
		return err
	}
	b := &batch{}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		handles, err := findRules(nf, key)
		if err != nil {
			return err
		}
		for _, handle := range handles {
			var body nl.Buffer
			body.String(unix.NFTA_RULE_TABLE, dockerTable).String(unix.NFTA_RULE_CHAIN, dockerChain)
			body.Attr(unix.NFTA_RULE_HANDLE, binary.BigEndian.AppendUint64(nil, handle))
			b.add(unix.NFT_MSG_DELRULE, 0, unix.NFPROTO_IPV4, &body, "remove a rule from Docker's chain "+dockerChain)
		}
	}
	return b.commit(nf)
}

// legacyForwardDrops reports whether the old iptables drops forwarded packets by default. It reads
// the table by getsockopt as the tool does (linux/netfilter_ipv4/ip_tables.h).
func legacyForwardDrops() bool {
	const (
		getInfo    = 64 // IPT_SO_GET_INFO
		getEntries = 65 // IPT_SO_GET_ENTRIES
		infoSize   = 84 // struct ipt_getinfo
		entrySize  = 112
	)
	// Asking for the table would load it; only look when it is there.
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
		return false
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	info := make([]byte, infoSize)
	copy(info, "filter")
	if getsockopt(fd, unix.IPPROTO_IP, getInfo, info) != nil {
		return false
	}
	// name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size
	underflow := binary.NativeEndian.Uint32(info[32+4+5*4+hookForward*4:])
	size := binary.NativeEndian.Uint32(info[32+4+5*4+5*4+4:])
	if size > 16<<20 || underflow+entrySize+40 > size {
		return false
	}
	// struct ipt_get_entries: name[32], size, then (aligned to 8) the entries
	entries := make([]byte, 40+size)
	copy(entries, "filter")
	binary.NativeEndian.PutUint32(entries[32:], size)
	if getsockopt(fd, unix.IPPROTO_IP, getEntries, entries) != nil {
		return false
	}
	// The underflow entry is the chain's policy: a standard target, 32 bytes of header and then
	// its verdict, -NF_DROP-1 for drop.
	verdict := int32(binary.NativeEndian.Uint32(entries[40+underflow+entrySize+32:]))
	return verdict == -verdictDrop-1
}
