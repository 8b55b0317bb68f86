package network

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/nl"
	"github.com/daytona-go/daytona/internal/network/policy"
)

// Families, hooks and priorities of linux/netfilter.h and netfilter_ipv4.h.
const (
	familyInet   = unix.NFPROTO_INET
	familyNetdev = unix.NFPROTO_NETDEV

	hookPrerouting  = unix.NF_INET_PRE_ROUTING
	hookInput       = unix.NF_INET_LOCAL_IN
	hookForward     = unix.NF_INET_FORWARD
	hookOutput      = unix.NF_INET_LOCAL_OUT
	hookPostrouting = unix.NF_INET_POST_ROUTING
	hookEgress      = 1 // NF_NETDEV_EGRESS

	priorityMangle = -150 // after connection tracking, before anybody's destination NAT
	priorityFilter = 0
	prioritySNAT   = 100

	verdictDrop   = 0
	verdictAccept = 1
)

// batch is a transaction on the firewall: the kernel takes all of it or nothing, and packets see
// either the rules before it or the rules after it.
type batch struct {
	msgs   []nl.Message
	lastID uint32
	err    error
}

func (b *batch) add(typ, flags uint16, family byte, body *nl.Buffer, what string) {
	b.msgs = append(b.msgs, nl.Message{
		Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | typ,
		Flags: flags,
		Body:  append([]byte{family, unix.NFNETLINK_V0, 0, 0}, body.Bytes()...),
		What:  what,
		NoAck: true,
	})
}

// commit sends the batch.
func (b *batch) commit(c *nl.Conn) error {
	if b.err != nil {
		return b.err
	}
	if len(b.msgs) == 0 {
		return nil
	}
	frame := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	all := make([]nl.Message, 0, len(b.msgs)+2)
	all = append(all, nl.Message{Type: unix.NFNL_MSG_BATCH_BEGIN, Body: frame, NoAck: true, What: "change firewall rules"})
	all = append(all, b.msgs...)
	all[len(all)-1].NoAck = false
	all = append(all, nl.Message{Type: unix.NFNL_MSG_BATCH_END, Body: frame, NoAck: true})
	return c.Do(all...)
}

func (b *batch) table(family byte, name string) {
	var body nl.Buffer
	body.String(unix.NFTA_TABLE_NAME, name)
	b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, family, &body, "create table "+name)
}

func (b *batch) deleteTable(family byte, name string) {
	var body nl.Buffer
	body.String(unix.NFTA_TABLE_NAME, name)
	b.add(unix.NFT_MSG_DELTABLE, 0, family, &body, "delete table "+name)
}

// hook makes a chain a base chain.
type hook struct {
	kind     string // "filter" or "nat"
	number   uint32
	priority int32
	device   string
	verdict  uint32 // for packets that no rule decides
}

// chain creates a chain, or leaves the one that is there.
func (b *batch) chain(family byte, table, name string, h *hook) {
	var body nl.Buffer
	body.String(unix.NFTA_CHAIN_TABLE, table).String(unix.NFTA_CHAIN_NAME, name)
	if h != nil {
		body.Nest(unix.NFTA_CHAIN_HOOK, func(body *nl.Buffer) {
			body.BE32(unix.NFTA_HOOK_HOOKNUM, h.number).BE32(unix.NFTA_HOOK_PRIORITY, uint32(h.priority))
			if h.device != "" {
				body.String(unix.NFTA_HOOK_DEV, h.device)
			}
		})
		body.BE32(unix.NFTA_CHAIN_POLICY, h.verdict).String(unix.NFTA_CHAIN_TYPE, h.kind)
	}
	b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, family, &body, "create chain "+table+" "+name)
}

// flush removes the rules of a chain.
func (b *batch) flush(family byte, table, chain string) {
	var body nl.Buffer
	body.String(unix.NFTA_RULE_TABLE, table).String(unix.NFTA_RULE_CHAIN, chain)
	b.add(unix.NFT_MSG_DELRULE, 0, family, &body, "empty chain "+table+" "+chain)
}

// rule appends a rule to a chain.
func (b *batch) rule(family byte, table, chain string, parts ...[]expr.Any) {
	b.putRule(family, table, chain, unix.NLM_F_CREATE|unix.NLM_F_APPEND, slices.Concat(parts...))
}

func (b *batch) putRule(family byte, table, chain string, flags uint16, exprs []expr.Any) {
	var body nl.Buffer
	body.String(unix.NFTA_RULE_TABLE, table).String(unix.NFTA_RULE_CHAIN, chain)
	body.Nest(unix.NFTA_RULE_EXPRESSIONS, func(body *nl.Buffer) {
		for _, e := range exprs {
			data, err := expr.Marshal(family, e)
			if err != nil && b.err == nil {
				b.err = fmt.Errorf("encode firewall expression %T: %w", e, err)
			}
			body.Attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
		}
	})
	b.add(unix.NFT_MSG_NEWRULE, flags, family, &body, "add a rule to chain "+table+" "+chain)
}

// typeIPv4 is the number that the nft tool gives the type ipv4_addr, so that it can print sets.
const typeIPv4 = 7

// ranges creates an anonymous set, which lives as long as the rule that looks it up.
func (b *batch) ranges(family byte, table string, ranges policy.Ranges) *expr.Lookup {
	const name = "__set%d" // the kernel puts the number
	b.lastID++
	id := b.lastID
	var body nl.Buffer
	body.String(unix.NFTA_SET_TABLE, table).String(unix.NFTA_SET_NAME, name)
	body.BE32(unix.NFTA_SET_FLAGS, unix.NFT_SET_ANONYMOUS|unix.NFT_SET_CONSTANT|unix.NFT_SET_INTERVAL)
	body.BE32(unix.NFTA_SET_KEY_TYPE, typeIPv4).BE32(unix.NFTA_SET_KEY_LEN, 4).BE32(unix.NFTA_SET_ID, id)
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, family, &body, "create an address set")
	// An attribute holds 64 KiB at most, so that a long list takes several messages.
	for chunk := range slices.Chunk(ranges, 500) {
		var body nl.Buffer
		body.String(unix.NFTA_SET_ELEM_LIST_TABLE, table).String(unix.NFTA_SET_ELEM_LIST_SET, name).BE32(unix.NFTA_SET_ELEM_LIST_SET_ID, id)
		body.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(body *nl.Buffer) {
			element := func(key uint32, end bool) {
				body.Nest(unix.NFTA_LIST_ELEM, func(body *nl.Buffer) {
					if end {
						body.BE32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
					}
					body.Nest(unix.NFTA_SET_ELEM_KEY, func(body *nl.Buffer) { body.BE32(unix.NFTA_DATA_VALUE, key) })
				})
			}
			for _, r := range chunk {
				element(r.First, false)
				if r.Last != ^uint32(0) {
					element(r.Last+1, true)
				}
			}
		})
		b.add(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, family, &body, "fill an address set")
	}
	return &expr.Lookup{SetName: name, SetID: id}
}

// maxInline is how many ranges are written as single rules rather than as a set.
const maxInline = 48

// acceptRanges accepts packets whose address lies in one of the ranges and that meet condition.
// Short lists, which nearly all are, become a rule each: a packet that is under way while rules
// are replaced can miss an address in a set that both the old and the new rules have, and be
// refused, because the kernel judges the elements of the old set by the new generation.
func (b *batch) acceptRanges(family byte, chain string, offset uint32, ranges policy.Ranges, condition []expr.Any) {
	if len(ranges) > maxInline {
		b.rule(family, tableName, chain, ipIn(offset, b.ranges(family, tableName, ranges)), condition, accept())
		return
	}
	// Wide ranges first: most packets match one of those.
	byWidth := slices.SortedFunc(slices.Values(ranges), func(x, y policy.Range) int {
		return cmp.Compare(y.Last-y.First, x.Last-x.First)
	})
	for _, r := range byWidth {
		within := &expr.Range{
			Op: expr.CmpOpEq, Register: 1,
			FromData: binary.BigEndian.AppendUint32(nil, r.First),
			ToData:   binary.BigEndian.AppendUint32(nil, r.Last),
		}
		b.rule(family, tableName, chain, []expr.Any{ipField(offset), within}, condition, accept())
	}
}

// flowSet creates the set that counts connections by source address.
func (b *batch) flowSet(family byte, table, name string) {
	b.lastID++
	var body nl.Buffer
	body.String(unix.NFTA_SET_TABLE, table).String(unix.NFTA_SET_NAME, name)
	body.BE32(unix.NFTA_SET_FLAGS, unix.NFT_SET_EVAL)
	body.BE32(unix.NFTA_SET_KEY_TYPE, typeIPv4).BE32(unix.NFTA_SET_KEY_LEN, 4).BE32(unix.NFTA_SET_ID, b.lastID)
	body.Nest(unix.NFTA_SET_DESC, func(body *nl.Buffer) { body.BE32(unix.NFTA_SET_DESC_SIZE, 1<<16) })
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, family, &body, "create the connection counters")
}

// The rest are the words that rules are made of.

func compare(op expr.CmpOp, data []byte) expr.Any { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// ifname matches interfaces by name; a trailing * matches any continuation.
func ifname(key expr.MetaKey, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	if n := len(name); n > 0 && name[n-1] == '*' {
		data = []byte(name[:n-1])
	} else {
		copy(data, name)
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, compare(expr.CmpOpEq, data)}
}

func ipv6Only() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, compare(expr.CmpOpEq, []byte{unix.NFPROTO_IPV6})}
}

func protocol(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(expr.CmpOpEq, []byte{number})}
}

// Offsets of the source and destination address in an IPv4 header.
const (
	ipSource      = 12
	ipDestination = 16
)

func ipField(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

func ipEquals(offset uint32, a netip.Addr) []expr.Any {
	b := a.As4()
	return []expr.Any{ipField(offset), compare(expr.CmpOpEq, b[:])}
}

func ipDiffers(offset uint32, a netip.Addr) []expr.Any {
	b := a.As4()
	return []expr.Any{ipField(offset), compare(expr.CmpOpNeq, b[:])}
}

func ipIn(offset uint32, set *expr.Lookup) []expr.Any {
	lookup := *set
	lookup.SourceRegister = 1
	return []expr.Any{ipField(offset), &lookup}
}

// port matches the source (offset 0) or destination (offset 2) port of TCP and UDP.
func port(offset uint32, number uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		compare(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, number)),
	}
}

// notFirstTCP matches every TCP segment but the one that opens a connection.
func notFirstTCP() []expr.Any {
	return append(protocol(unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}}, // FIN SYN RST ACK
		compare(expr.CmpOpNeq, []byte{0x02})) // SYN alone
}

func etherType(op expr.CmpOp, typ uint16) []expr.Any {
	return []expr.Any{
		// Read from the frame: what the sender of a raw frame claims its protocol to be
		// (meta protocol) need not be what the frame says.
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2},
		compare(op, binary.BigEndian.AppendUint16(nil, typ)),
	}
}

func ctState(mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(mask), Xor: native32(0)},
		compare(expr.CmpOpNeq, native32(0)),
	}
}

// ctReply matches the answering direction of a connection that the other side opened.
func ctReply() []expr.Any {
	return append(ctState(expr.CtStateBitESTABLISHED),
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, compare(expr.CmpOpEq, []byte{1}))
}

// unroutableSource matches packets whose source would not be answered through the interface they
// came from.
func unroutableSource() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true}, compare(expr.CmpOpEq, native32(0))}
}

// notUnicast matches destinations that are the host's own, broadcast, multicast or blackholed.
func notUnicast() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, compare(expr.CmpOpNeq, native32(unix.RTN_UNICAST))}
}

// tooManyFlows matches when the source has more than limit connections.
func tooManyFlows(set string, limit uint32) []expr.Any {
	return []expr.Any{
		ipField(ipSource),
		&expr.Dynset{SrcRegKey: 1, SetName: set, Operation: uint32(unix.NFT_DYNSET_OP_ADD), Exprs: []expr.Any{
			&expr.Connlimit{Count: limit, Flags: expr.NFT_CONNLIMIT_F_INV},
		}},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func accept() []expr.Any { return verdict(expr.VerdictAccept) }
func drop() []expr.Any   { return verdict(expr.VerdictDrop) }

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func reject(kind uint32, code byte) []expr.Any {
	return []expr.Any{&expr.Reject{Type: kind, Code: code}}
}
