package telemetry

import (
	"encoding/binary"
	"math"
	"slices"
)

// message is a message of Protocol Buffers in the making. Field numbers are
// those of opentelemetry/proto/{logs,metrics,trace,resource,common}/v1, which no
// release of the protocol changes. The official encoder would cost the agent
// several times its own start.
type message []byte

func (m *message) key(field, kind uint64) { *m = binary.AppendUvarint(*m, field<<3|kind) }

func (m *message) uint(field, v uint64) {
	m.key(field, 0)
	*m = binary.AppendUvarint(*m, v)
}

func (m *message) fixed64(field, v uint64) {
	m.key(field, 1)
	*m = binary.LittleEndian.AppendUint64(*m, v)
}

func (m *message) bytes(field uint64, b []byte) {
	m.key(field, 2)
	*m = append(binary.AppendUvarint(*m, uint64(len(b))), b...)
}

func (m *message) text(field uint64, s string) {
	if s != "" {
		m.bytes(field, []byte(s))
	}
}

// Attribute is a named value.
type Attribute struct {
	Name  string
	Value any // string or int
}

func (m *message) attributes(field uint64, list []Attribute) {
	for _, a := range list {
		var value, pair message
		switch v := a.Value.(type) {
		case string:
			value.bytes(1, []byte(v))
		case int:
			value.uint(3, uint64(v))
		}
		pair.text(1, a.Name)
		pair.bytes(2, value)
		m.bytes(field, pair)
	}
}

// wrap puts records, each with its field number, into a request of one resource
// and one scope.
func wrap(resource []Attribute, version string, records message) []byte {
	var r, scope, scoped, of, request message
	r.attributes(1, resource)
	scope.text(1, "daytona")
	scope.text(2, version)
	scoped.bytes(1, scope)
	scoped = append(scoped, records...)
	of.bytes(1, r)
	of.bytes(2, scoped)
	request.bytes(1, of)
	return request
}

// Severities of log records.
const (
	severityInfo  = 9
	severityError = 17
)

func (m *message) log(at uint64, severity uint64, name, body string) {
	var value, record message
	value.bytes(1, []byte(body))
	record.fixed64(1, at)
	record.uint(2, severity)
	record.text(3, name)
	record.bytes(5, value)
	record.fixed64(11, at)
	m.bytes(2, record)
}

func (m *message) gauge(at uint64, name, unit string, value float64) {
	var point, gauge, metric message
	point.fixed64(3, at)
	point.fixed64(4, math.Float64bits(value))
	gauge.bytes(1, point)
	metric.text(1, name)
	metric.text(3, unit)
	metric.bytes(5, gauge)
	m.bytes(2, metric)
}

// span is that of a request.
type span struct {
	trace      [16]byte
	id, parent [8]byte
	name       string
	begin, end uint64
	failed     bool
	attributes []Attribute
}

func (m *message) span(s *span) {
	const server = 2 // SPAN_KIND_SERVER
	var b message
	b.bytes(1, s.trace[:])
	b.bytes(2, s.id[:])
	if s.parent != [8]byte{} {
		b.bytes(4, s.parent[:])
	}
	b.text(5, s.name)
	b.uint(6, server)
	b.fixed64(7, s.begin)
	b.fixed64(8, s.end)
	b.attributes(9, s.attributes)
	if s.failed {
		b.bytes(15, slices.Clip(message{3 << 3, 2})) // STATUS_CODE_ERROR
	}
	m.bytes(2, b)
}
