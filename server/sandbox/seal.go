package sandbox

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/daytona-go/daytona"
)

// sealer encrypts what the database is not to have in the clear and what must
// be readable again.
type sealer struct{ aead cipher.AEAD }

func newSealer(key []byte) (*sealer, error) {
	if len(key) != 32 {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "make sandbox service", Field: "Key", Message: "must have 32 bytes"}
	}
	own, err := hkdf.Key(sha256.New, key, nil, "daytona sandbox", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(own)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &sealer{aead}, err
}

// seal encrypts text, which only unseal with the same about decrypts: what was
// copied to another row is worth nothing there.
func (s *sealer) seal(about, text string) string {
	if text == "" {
		return ""
	}
	return base64.RawStdEncoding.EncodeToString(s.aead.Seal(nil, nil, []byte(text), []byte(about)))
}

func (s *sealer) unseal(about, sealed string) (string, error) {
	if sealed == "" {
		return "", nil
	}
	b, err := base64.RawStdEncoding.DecodeString(sealed)
	if err != nil {
		return "", errors.New("what is sealed is no base64")
	}
	text, err := s.aead.Open(nil, nil, b, []byte(about))
	if err != nil {
		return "", errors.New("the key of the server does not open what another sealed")
	}
	return string(text), nil
}

// hashOf is how a token is kept: it has all the entropy that it needs.
func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

const lower = "abcdefghijklmnopqrstuvwxyz0123456789"

// token returns n random characters of [a-z0-9], 5.17 bits each.
func token(n int) string {
	out := make([]byte, 0, n)
	var b [64]byte
	for len(out) < n {
		rand.Read(b[:])
		for _, v := range b {
			// 252 is a multiple of 36: all are equally likely.
			if v < 252 && len(out) < n {
				out = append(out, lower[v%36])
			}
		}
	}
	return string(out)
}

// newID returns a random UUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
