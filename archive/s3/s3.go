// Package s3 lets backends keep archived sandboxes in a bucket of any service
// that speaks S3, by linking an S3 client into a program that imports it:
//
//	import _ "github.com/daytona-go/daytona/archive/s3"
//
//	client, err := daytona.Open(ctx, "local://?archive=s3://bucket/prefix")
//
// The same goes for docker:// and for the option Archive of either backend. The
// URL is s3://bucket/prefix?endpoint=https://host:port&region=name; as the value
// of a parameter of another URL, its "&" is written "%26". The bucket has to
// exist.
//
// Credentials are never part of a URL. They are AWS_ACCESS_KEY_ID,
// AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or else those of the profile
// AWS_PROFILE, and are read when the backend is opened. Endpoint and region
// default to AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and to AWS_REGION or
// AWS_DEFAULT_REGION; else to Amazon's in us-east-1.
package s3

import (
	"github.com/daytona-go/daytona/internal/objects"
	"github.com/daytona-go/daytona/internal/objects/s3"
)

func init() { objects.Register("s3", s3.OpenURL) }
