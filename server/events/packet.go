package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
)

// Types of packets of Engine.IO, version 4: the first byte of a frame.
const (
	engineOpen    = '0'
	engineClose   = '1'
	enginePing    = '2'
	enginePong    = '3'
	engineMessage = '4'
	engineUpgrade = '5'
	engineNoop    = '6'
)

// Types of packets of Socket.IO, protocol version 5: the first byte of a message.
const (
	socketConnect      = '0'
	socketDisconnect   = '1'
	socketEvent        = '2'
	socketAck          = '3'
	socketConnectError = '4'
)

// packet is one of Socket.IO's.
type packet struct {
	kind byte
	// namespace begins with a slash; "/" is the main one.
	namespace string
	// id is what an acknowledgement is to have, "" for none.
	id   string
	data json.RawMessage
}

var errPacket = errors.New("this is no packet of Socket.IO")

// maxNamespace bounds the name of a namespace, in bytes.
const maxNamespace = 128

// parse reads a packet without attachments: no client has binary ones to send.
func parse(s string) (packet, error) {
	if s == "" || s[0] < socketConnect || s[0] > socketConnectError {
		return packet{}, errPacket
	}
	p := packet{kind: s[0], namespace: "/"}
	s = s[1:]
	if strings.HasPrefix(s, "/") {
		name, rest, found := strings.Cut(s, ",")
		if !found {
			rest = ""
		}
		// A query in it is of old clients.
		name, _, _ = strings.Cut(name, "?")
		if len(name) > maxNamespace {
			return packet{}, errPacket
		}
		p.namespace, s = name, rest
	}
	i := 0
	for i < len(s) && i < 10 && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	p.id, s = s[:i], s[i:]
	if s == "" {
		return p, nil
	}
	if !json.Valid([]byte(s)) {
		return packet{}, errPacket
	}
	p.data = json.RawMessage(s)
	return p, nil
}

// encode is the message of a packet.
func (p packet) encode() []byte {
	var b bytes.Buffer
	b.WriteByte(engineMessage)
	b.WriteByte(p.kind)
	if p.namespace != "/" && p.namespace != "" {
		b.WriteString(p.namespace)
		b.WriteByte(',')
	}
	b.WriteString(p.id)
	b.Write(p.data)
	return b.Bytes()
}
