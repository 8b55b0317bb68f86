package issuer

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"sync"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"
	"github.com/uptrace/bun"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// keyRow is a signing key in the database, sealed with the issuer's secret.
type keyRow struct {
	bun.BaseModel `bun:"table:issuer_keys,alias:issuer_key"`

	ID        string    `bun:"id,pk"`
	Sealed    string    `bun:"sealed,notnull"`
	CreatedAt time.Time `bun:"created_at,notnull"`
}

// signingKey is a key that has been opened.
type signingKey struct {
	id   string
	key  *rsa.PrivateKey
	made time.Time
}

func (k *signingKey) ID() string                                  { return k.id }
func (k *signingKey) Key() any                                    { return k.key }
func (k *signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }

// publicKey is the half that is published.
type publicKey struct{ *signingKey }

func (k publicKey) Key() any                           { return &k.key.PublicKey }
func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k publicKey) Use() string                        { return "sig" }

var (
	_ op.SigningKey = (*signingKey)(nil)
	_ op.Key        = publicKey{}
)

// keyring has the signing keys, newest first.
type keyring struct {
	config Config
	aead   cipher.AEAD

	mu     sync.Mutex
	keys   []*signingKey
	loaded time.Time
}

const (
	// keysFresh is how long keys that were read are believed to be all there
	// are; keysAgain how long, where one is missing.
	keysFresh, keysAgain = time.Minute, time.Second
)

func newKeyring(c Config) (*keyring, error) {
	key, err := derive(c.Secret, "signing keys")
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &keyring{config: c, aead: aead}, nil
}

// keep is how long a key is there after it was made: what it signed last must
// have expired.
func (k *keyring) keep() time.Duration { return k.config.RotateAfter + 2*k.config.AccessTTL }

// load returns the keys, which are at most age old. k.mu is held.
func (k *keyring) load(ctx context.Context, age time.Duration) error {
	now := k.config.Now()
	if !k.loaded.IsZero() && now.Sub(k.loaded) < age {
		return nil
	}
	var rows []keyRow
	if err := k.config.DB.All(ctx).NewSelect().Model(&rows).Where("created_at > ?", now.Add(-k.keep()).UTC()).
		Order("created_at DESC", "id").Scan(ctx); err != nil {
		return err
	}
	keys := make([]*signingKey, 0, len(rows))
	for _, row := range rows {
		key, err := k.open(row)
		if err != nil {
			// Sealed with another secret: no use to us, but perhaps to others.
			k.config.Log.Warn("a signing key can't be opened with this secret", "key", row.ID)
			continue
		}
		keys = append(keys, &signingKey{id: row.ID, key: key, made: row.CreatedAt})
	}
	k.keys, k.loaded = keys, now
	return nil
}

func (k *keyring) open(row keyRow) (*rsa.PrivateKey, error) {
	sealed, err := base64.StdEncoding.DecodeString(row.Sealed)
	if err != nil {
		return nil, err
	}
	der, err := k.aead.Open(nil, nil, sealed, []byte(row.ID))
	if err != nil {
		return nil, err
	}
	return x509.ParsePKCS1PrivateKey(der)
}

// signing returns the key that signs now; it is made if there is none, or none
// that is young enough.
func (k *keyring) signing(ctx context.Context) (*signingKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(ctx, keysFresh); err != nil {
		return nil, err
	}
	now := k.config.Now().UTC()
	if len(k.keys) > 0 && now.Sub(k.keys[0].made) < k.config.RotateAfter {
		return k.keys[0], nil
	}
	// Two servers may both do this: then there are two keys, both published.
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	row := &keyRow{ID: uuid.NewString(), CreatedAt: now}
	row.Sealed = base64.StdEncoding.EncodeToString(k.aead.Seal(nil, nil, x509.MarshalPKCS1PrivateKey(key), []byte(row.ID)))
	if _, err := k.config.DB.All(ctx).NewInsert().Model(row).Exec(ctx); err != nil {
		return nil, err
	}
	k.config.Log.Info("new signing key", "key", row.ID)
	made := &signingKey{id: row.ID, key: key, made: now}
	k.keys = append([]*signingKey{made}, k.keys...)
	return made, nil
}

func (k *keyring) published(ctx context.Context) ([]op.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(ctx, keysAgain); err != nil {
		return nil, err
	}
	keys := make([]op.Key, len(k.keys))
	for i, key := range k.keys {
		keys[i] = publicKey{key}
	}
	return keys, nil
}

func (k *keyring) find(ctx context.Context, id string) (*signingKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, age := range []time.Duration{keysFresh, keysAgain} {
		if err := k.load(ctx, age); err != nil {
			return nil, err
		}
		for _, key := range k.keys {
			if key.id == id {
				return key, nil
			}
		}
	}
	return nil, nil
}

func (k *keyring) sweep(ctx context.Context) error {
	_, err := k.config.DB.All(ctx).NewDelete().Model((*keyRow)(nil)).Where("created_at < ?", k.config.Now().Add(-k.keep()).UTC()).Exec(ctx)
	return err
}

// useClaim tells access tokens from ID tokens, which have the same form and
// are passed about where they may be read: only the former are credentials.
const useClaim, useAccess = "token_use", "access"

// VerifySignature returns what an access token of this issuer says, if its
// signature is right. It makes Issuer a set of keys as go-oidc has it, so that
// a server need not ask itself for them.
func (i *Issuer) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return nil, err
	}
	if len(jws.Signatures) != 1 {
		return nil, errors.New("a token has one signature")
	}
	key, err := i.keys.find(ctx, jws.Signatures[0].Header.KeyID)
	if err != nil {
		return nil, errors.Join(errors.New("fetching keys"), err)
	}
	if key == nil {
		return nil, errors.New("signed with a key that is not ours")
	}
	payload, err := jws.Verify(&key.key.PublicKey)
	if err != nil {
		return nil, err
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, err
	}
	if claims[useClaim] != useAccess {
		return nil, errors.New("not an access token")
	}
	return payload, nil
}
