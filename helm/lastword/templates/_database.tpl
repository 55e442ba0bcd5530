{{/* Where Postgres is, and where its URL and the tokens are found. */}}

{{/* The Secret that holds the URL; empty where a file of the user's does. */}}
{{- define "lastword.database.secretName" -}}
{{- if .Values.database.existingSecret -}}
{{ .Values.database.existingSecret }}
{{- else if .Values.cnpg.enabled -}}
{{ include "lastword.fullname" . }}-pg-app
{{- else if .Values.postgres.enabled -}}
{{ include "lastword.fullname" . }}-postgres
{{- end -}}
{{- end -}}

{{- define "lastword.database.secretKey" -}}
{{- if .Values.database.existingSecret -}}
{{ .Values.database.secretKey }}
{{- else if .Values.cnpg.enabled -}}
uri
{{- else -}}
url
{{- end -}}
{{- end -}}

{{- define "lastword.auth.secretName" -}}
{{ default (printf "%s-auth" (include "lastword.fullname" .)) .Values.auth.existingSecret }}
{{- end -}}

{{/* A Secret of the chart's own has fixed keys. */}}
{{- define "lastword.auth.key" -}}
{{- $own := dict "clientTokensKey" "client-tokens" "operatorTokensKey" "operator-tokens" "operatorTokenKey" "operator-token" -}}
{{- if .root.Values.auth.existingSecret -}}{{ get .root.Values.auth .key }}{{- else -}}{{ get $own .key }}{{- end -}}
{{- end -}}

{{/* What a process needs to find Postgres. The URL is never in a pod's spec or environment. */}}
{{- define "lastword.database.env" -}}
- name: LASTWORD_DATABASE_URL_FILE
  value: {{ default "/etc/lastword/database/url" .Values.database.urlFile | quote }}
{{- with .Values.database.listener }}
{{- if or .existingSecret .urlFile }}
- name: LASTWORD_LISTENER_DATABASE_URL_FILE
  value: {{ default "/etc/lastword/listener/url" .urlFile | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "lastword.database.volumes" -}}
{{- if include "lastword.database.secretName" . }}
- name: database
  secret:
    secretName: {{ include "lastword.database.secretName" . | quote }}
    defaultMode: 0440
    items:
      - key: {{ include "lastword.database.secretKey" . | quote }}
        path: url
{{- end }}
{{- with .Values.database.listener }}
{{- if .existingSecret }}
- name: listener
  secret:
    secretName: {{ .existingSecret | quote }}
    defaultMode: 0440
    items:
      - key: {{ .secretKey | quote }}
        path: url
{{- end }}
{{- end }}
{{- end -}}

{{- define "lastword.database.mounts" -}}
{{- if include "lastword.database.secretName" . }}
- name: database
  mountPath: /etc/lastword/database
  readOnly: true
{{- end }}
{{- if .Values.database.listener.existingSecret }}
- name: listener
  mountPath: /etc/lastword/listener
  readOnly: true
{{- end }}
{{- end -}}
