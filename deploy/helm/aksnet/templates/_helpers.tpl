{{- define "aksnet.labels" -}}
app.kubernetes.io/name: aksnet
{{- end }}

{{- define "aksnet.monitorLabels" -}}
{{ include "aksnet.labels" . }}
{{- with .Values.scrape.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Dashboards and alerts tell nodes apart by `instance` (docs/dashboards.md). */}}
{{- define "aksnet.endpoint" -}}
- port: metrics
  path: /metrics
  interval: {{ .Values.scrape.interval }}
  {{- if .Values.secureMetrics.enabled }}
  scheme: https
  tlsConfig:
    serverName: {{ .Values.secureMetrics.serverName | default (printf "aksnet.%s.svc" .Release.Namespace) }}
    ca:
      secret:
        name: {{ .Values.secureMetrics.secretName }}
        key: ca.crt
  authorization:
    type: Bearer
    credentials:
      name: aksnet-scraper
      key: token
  {{- end }}
  relabelings:
    - sourceLabels: [__meta_kubernetes_pod_node_name]
      targetLabel: instance
{{- end }}

{{- define "aksnet.setting" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "float64" . }}{{ printf "%.0f" . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}
