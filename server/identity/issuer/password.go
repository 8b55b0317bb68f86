package issuer

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/uptrace/bun"
	"golang.org/x/crypto/argon2"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// password is how a user logs in.
type password struct {
	bun.BaseModel `bun:"table:issuer_passwords,alias:issuer_password"`

	UserID    string    `bun:"user_id,pk"`
	Email     string    `bun:"email,notnull"` // in lower case
	Hash      string    `bun:"hash,notnull"`
	UpdatedAt time.Time `bun:"updated_at,notnull"`
}

const (
	// MinPassword and maxPassword are the lengths of passwords, in characters
	// and in bytes.
	MinPassword, maxPassword = 8, 1024

	// What OWASP recommends for argon2id.
	argonTime, argonMemory, argonThreads = 2, 19 << 10, 1
)

// hashPassword makes what is kept of a password, in the form that all
// implementations of argon2 share.
func hashPassword(text string) string {
	salt := make([]byte, 16)
	rand.Read(salt)
	return encodePassword(text, salt)
}

func encodePassword(text string, salt []byte) string {
	sum := argon2.IDKey([]byte(text), salt, argonTime, argonMemory, argonThreads, 32)
	e := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads, e.EncodeToString(salt), e.EncodeToString(sum))
}

// checkPassword reports whether a hash is that of a text.
func checkPassword(hash, text string) bool {
	var version, memory, time int
	var threads uint8
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false
	}
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); err != nil {
		return false
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	if err != nil {
		return false
	}
	want, err := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil || len(want) == 0 {
		return false
	}
	got := argon2.IDKey([]byte(text), salt, uint32(time), uint32(memory), threads, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1
}

func normal(email string) string { return strings.ToLower(strings.TrimSpace(email)) }

// SetPassword lets a user log in with an address and a password, and with no
// other from now on: whoever is logged in as the user is not any more.
func (i *Issuer) SetPassword(ctx context.Context, userID, email, text string) error {
	const op = "set password"
	email = normal(email)
	if userID == "" || email == "" || len(email) > 255 {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "email", Value: email, Message: "must have 1 to 255 bytes"}
	}
	if utf8.RuneCountInString(text) < MinPassword || len(text) > maxPassword {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Message: fmt.Sprintf("a password must have at least %d characters and at most %d bytes", MinPassword, maxPassword)}
	}
	p := &password{UserID: userID, Email: email, Hash: hashPassword(text), UpdatedAt: i.now().UTC()}
	err := i.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := i.db.All(ctx).NewInsert().Model(p).On("CONFLICT (user_id) DO UPDATE").
			Set("email = EXCLUDED.email").Set("hash = EXCLUDED.hash").Set("updated_at = EXCLUDED.updated_at").Exec(ctx); err != nil {
			return err
		}
		return i.signOut(ctx, userID)
	})
	if store.IsUnique(err) {
		return &daytona.Error{Kind: daytona.KindConflict, Op: op, Field: "email", Value: email, Message: "somebody else logs in with it"}
	}
	return err
}

// HasPassword reports whether a user can log in.
func (i *Issuer) HasPassword(ctx context.Context, userID string) (bool, error) {
	return i.db.All(ctx).NewSelect().Model((*password)(nil)).Where("user_id = ?", userID).Exists(ctx)
}

// RemovePassword ends it that a user can log in, and all logins of theirs.
func (i *Issuer) RemovePassword(ctx context.Context, userID string) error {
	return i.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := i.db.All(ctx).NewDelete().Model((*password)(nil)).Where("user_id = ?", userID).Exec(ctx); err != nil {
			return err
		}
		return i.signOut(ctx, userID)
	})
}

// signOut ends all sessions and refresh tokens of a user.
func (i *Issuer) signOut(ctx context.Context, userID string) error {
	for _, model := range []any{(*session)(nil), (*refresh)(nil)} {
		if _, err := i.db.All(ctx).NewDelete().Model(model).Where("user_id = ?", userID).Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// nobodys is the hash of no password: a login with an address that is not
// there takes as long as one with a wrong password.
const nobodys = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// login returns the user with an address and a password, or "".
func (i *Issuer) login(ctx context.Context, email, text string) (userID string, err error) {
	if len(text) > maxPassword || len(email) > 255 {
		return "", nil
	}
	p := &password{}
	err = i.db.All(ctx).NewSelect().Model(p).Where("email = ?", normal(email)).Scan(ctx)
	if err != nil && !store.IsNone(err) {
		return "", err
	}
	hash := p.Hash
	if hash == "" {
		hash = nobodys
	}
	// Each takes 19 MiB.
	select {
	case i.hashing <- struct{}{}:
		defer func() { <-i.hashing }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if !checkPassword(hash, text) || p.Hash == "" {
		return "", nil
	}
	return p.UserID, nil
}
