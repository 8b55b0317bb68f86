// Package seal encrypts what the database must not be able to tell: secrets of
// users, passwords of registries, keys that the server signs with.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"

	"github.com/daytona-go/daytona"
)

// MinKey is the shortest key, in bytes.
const MinKey = 16

// Box seals with one key and opens with it and with those before it.
type Box struct{ keys []cipher.AEAD }

// New returns a box of a key, as ENCRYPTION_KEY has it, and of keys that were
// in use before: what they sealed can still be opened, nothing new is sealed
// with them.
func New(key string, old ...string) (*Box, error) {
	b := &Box{}
	for _, k := range append([]string{key}, old...) {
		if len(k) < MinKey {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "open encryption key", Message: "ENCRYPTION_KEY must have at least 16 bytes; `openssl rand -hex 32` makes one"}
		}
		derived, err := hkdf.Key(sha256.New, []byte(k), nil, "daytona server seal 1", 32)
		if err != nil {
			return nil, err
		}
		block, err := aes.NewCipher(derived)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		b.keys = append(b.keys, aead)
	}
	return b, nil
}

// prefix says how a text is sealed: AES-256-GCM, the nonce before it.
const prefix = "a1:"

var errOpen = errors.New("it was sealed with another key, or for another place, or has been changed")

// Seal encrypts. What it returns can be opened with the same place only, such
// as "secret/<id>", so that nobody who can write to the database can move it
// to a row from which they may read it.
func (b *Box) Seal(plain, place string) string {
	return prefix + base64.RawStdEncoding.EncodeToString(b.keys[0].Seal(nil, nil, []byte(plain), []byte(place)))
}

// Open is the inverse of Seal.
func (b *Box) Open(sealed, place string) (string, error) {
	if text, ok := strings.CutPrefix(sealed, prefix); ok {
		if raw, err := base64.RawStdEncoding.DecodeString(text); err == nil {
			for _, k := range b.keys {
				if plain, err := k.Open(nil, nil, raw, []byte(place)); err == nil {
					return string(plain), nil
				}
			}
		}
	}
	return "", &daytona.Error{Kind: daytona.KindInternal, Op: "decrypt", Subject: place, Err: errOpen}
}
