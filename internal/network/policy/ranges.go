package policy

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Range is a span of IPv4 addresses, both ends included, as numbers.
type Range struct{ First, Last uint32 }

// Ranges are spans in rising order that neither overlap nor touch.
type Ranges []Range

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func rangeOf(p netip.Prefix) Range {
	first := number(p.Masked().Addr())
	return Range{first, first | uint32(uint64(1)<<(32-p.Bits())-1)}
}

// Contains reports whether addr lies in one of the spans. An IPv6 address never does; an
// IPv4-mapped one (::ffff:a.b.c.d) counts as IPv6, for what it means depends on who dials it.
func (r Ranges) Contains(addr netip.Addr) bool {
	if !addr.Is4() {
		return false
	}
	n := number(addr)
	_, found := slices.BinarySearchFunc(r, n, func(s Range, n uint32) int {
		switch {
		case s.Last < n:
			return -1
		case s.First > n:
			return 1
		}
		return 0
	})
	return found
}

func (r Ranges) add(p netip.Prefix) Ranges { return append(r, rangeOf(p)).merged() }

func (r Ranges) merged() Ranges {
	sorted := slices.SortedFunc(slices.Values(r), func(a, b Range) int { return cmp.Compare(a.First, b.First) })
	var out Ranges
	for _, s := range sorted {
		if n := len(out); n > 0 && uint64(s.First) <= uint64(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, s.Last)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (r Ranges) remove(p netip.Prefix) Ranges {
	cut := rangeOf(p)
	var out Ranges
	for _, s := range r {
		if s.Last < cut.First || s.First > cut.Last {
			out = append(out, s)
			continue
		}
		if s.First < cut.First {
			out = append(out, Range{s.First, cut.First - 1})
		}
		if s.Last > cut.Last {
			out = append(out, Range{cut.Last + 1, s.Last})
		}
	}
	return out
}
