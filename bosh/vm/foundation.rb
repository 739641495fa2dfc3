# frozen_string_literal: true

require 'json'
require 'socket'
require_relative '../tests/lib/manifest'
require_relative 'vm'

# cf-deployment with this release on VMs behind one bridge, with the development Cloud
# Controller and destinations for packets at the bridge's own addresses. Runs in namespaces
# of its own. Jobs of other releases are left out.
class Foundation
  FILES = %w[cf-deployment/scale-to-one-az cf-deployment/isolation-segment use-portcullis-release swap-all
             swap-policy-server-internal swap-vxlan-policy-agent-isolated remove-vxlan-policy-agent
             use-embedded-database].freeze
  ADDRESS = '10.0.0.1'
  DESTINATIONS = %w[1.2.3.4 5.6.7.8 23.96.32.148].freeze
  NAMES = "#{ADDRESS} cloud-controller-ng.service.cf.internal uaa.service.cf.internal\n"
  SHELL = <<~'TEXT'
    cf() { # curl PATH OPTIONS, as the cf CLI
        local path=$2
        curl --silent --show-error --fail-with-body --cacert "$CA" -H "Authorization: bearer $TOKEN" \
            "https://cloud-controller-ng.service.cf.internal:9024$path" "${@:3}"
    }
  TEXT

  attr_reader :vms

  def initialize(directory, programs, monit)
    @directory = directory
    @programs = programs
    @monit = monit
    @base = Manifest.with(*FILES).apply(YAML.safe_load_file("#{__dir__}/two-syncers.yml"))
    @vms = @base.ours.map(&:first).uniq.flat_map.with_index do |group, number|
      Array.new(group['instances']) { |index| Vm.new(group['name'], index, "10.0.#{16 + number}.#{10 + index}", directory) }
    end
    @files = {}
  end

  def vm(name) = @vms.find { |vm| vm.name == name }

  def raise_up
    network
    cloud_controller
    @vms.map { |vm| Thread.new { vm.boot(hosts, @programs, @monit) } }.each(&:join)
    deploy
  end

  # Deploys, with further files of bosh/ops: instances whose files change are stopped and
  # started, one after the other.
  def deploy(*files)
    operations = files.flat_map { |file| YAML.safe_load_file("#{Manifest::OPS}/#{file}.yml") }
    manifest = @base.apply(operations, variables: @base.variables)
    @vms.map do |vm|
      files = render(manifest, vm)
      next if files == @files[vm]

      vm.stop if @files[vm]
      vm.start(files)
      @files[vm] = files
      vm
    end.compact
  end

  # Stops a VM's jobs, and starts them again; the answers of the drain scripts.
  def restart(vm)
    answers = vm.stop
    vm.start(@files[vm])
    answers
  end

  # A command of the operator's shell.
  def run(command)
    output, status = Open3.capture2e({ 'CA' => "#{@directory}/cc.ca", 'TOKEN' => token }, 'bash', '-c', SHELL + command)
    raise "#{command}: #{output}" unless status.success?

    output
  end

  def cloud(path, body = nil)
    JSON.parse(run("cf curl '#{path}' #{body && "-d '#{JSON.generate(body)}'"}"))
  end

  private

  # All files of a VM: path below /var/vcap/jobs to text.
  def render(manifest, vm)
    manifest.ours.select { |group, _| group['name'] == vm.group }.map do |group, job|
      files = manifest.render(group, job, index: vm.index, instance: vm.fields)
      files.transform_keys { |path| "#{job['name']}/#{path}" }
    end.reduce(:merge)
  end

  # Lines for /etc/hosts: the DNS aliases of the manifest.
  def hosts
    jobs = @base.document['addons'].flat_map { |addon| addon['jobs'] }
    aliases = jobs.find { |job| job['name'] == 'bosh-dns-aliases' }['properties']['aliases']
    lines = aliases.reject { |entry| NAMES.include?(entry['domain']) }.flat_map do |entry|
      groups = entry['targets'].map { |target| target['instance_group'] }
      @vms.select { |vm| groups.include?(vm.group) }.map { |vm| "#{vm.ip} #{entry['domain']}\n" }
    end
    NAMES + lines.join
  end

  def network
    ['mount -t tmpfs tmpfs /run', 'ip link set lo up', 'ip link add bosh0 type bridge', "ip addr add #{ADDRESS}/16 dev bosh0",
     'ip link set bosh0 up', *DESTINATIONS.map { |address| "ip addr add #{address}/32 dev lo" }].each { |line| Vm.run(*line.split) }
    File.write("#{@directory}/hosts", "127.0.0.1 localhost\n#{NAMES}")
    Vm.run('mount', '--bind', "#{@directory}/hosts", '/etc/hosts')
    server = TCPServer.new('0.0.0.0', 80)
    Thread.new { loop { server.accept.close } }
  end

  def cloud_controller
    { 'cc' => 'cc_and_uaa', 'internal' => 'cc_tls' }.each do |name, variable|
      value = @base.variables.value(variable)
      { 'ca' => 'ca', 'crt' => 'certificate', 'key' => 'private_key' }.each do |suffix, part|
        File.write("#{@directory}/#{name}.#{suffix}", value.fetch(part))
      end
    end
    cert = ->(name) { { 'cert_file' => "#{@directory}/#{name}.crt", 'key_file' => "#{@directory}/#{name}.key" } }
    config = { 'api_address' => "#{ADDRESS}:9024", 'uaa_address' => "#{ADDRESS}:8443", 'internal_address' => "#{ADDRESS}:9023",
               'tls' => cert['cc'], 'internal_tls' => cert['internal'].merge('ca_file' => "#{@directory}/internal.ca"),
               'clients' => [{ 'id' => 'network-policy', 'secret' => @base.variables.value('uaa_clients_network_policy_secret'),
                               'authorities' => %w[uaa.resource cloud_controller.admin_read_only] }] }
    File.write("#{@directory}/cc.json", JSON.generate(config))
    log = "#{@directory}/cc.log"
    spawn("#{@programs}/portcullis-dev", 'cloud-controller', '--config-file', "#{@directory}/cc.json", %i[out err] => log)
    Vm.wait_for("the Cloud Controller starts (#{log})", 20) { File.read(log).include?('cloud-controller.started') }
  end

  def token
    @token ||= JSON.parse(Vm.run('curl', '--silent', '--fail', '--cacert', "#{@directory}/cc.ca", '-u', 'cf:',
                                 'https://uaa.service.cf.internal:8443/oauth/token', '-d', 'grant_type=password',
                                 '-d', 'username=admin', '-d', 'password=admin')).fetch('access_token')
  end
end
