# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/release'

# Runs the drain script of every job against real processes, as the agent does: a first
# call with job_shutdown, then job_check_status until the script prints 0.
class DrainTest < Minitest::Test
  JOBS = Release.job_names.select { |name| Release.job(name).spec['templates'].value?('bin/drain') }

  JOBS.each do |name|
    define_method("test_no_process_of_#{name}") do
      drain(name) { |call| assert_equal '0', call.call('job_shutdown') }
    end

    define_method("test_process_of_#{name}_ends") do
      drain(name, '') do |call, pid, run|
        assert_equal '-1', call.call('job_shutdown')
        assert_equal Signal.list['TERM'], Process.wait2(pid).last.termsig
        assert_equal '0', call.call('job_check_status')
        refute_path_exists "#{run}/#{name}.pid"
      end
    end

    define_method("test_hanging_process_of_#{name}_is_left_to_monit") do
      drain(name, 'trap "" TERM') do |call, pid, run|
        assert_equal '-1', call.call('job_shutdown')
        assert_equal '-1', call.call('job_check_status')
        File.write("#{run}/drain-started", Time.now.to_i - 320)
        assert_equal '0', call.call('job_check_status')
        assert_nil Process.wait2(pid, Process::WNOHANG), 'the process runs'
      end
    end
  end

  private

  # Yields a function that calls the script, and the process behind the job's pid file.
  def drain(name, preparation = nil)
    Dir.mktmpdir do |root|
      script = "#{root}/drain"
      File.write(script, Release.render(name, 'minimal')['bin/drain'].gsub('/var/vcap/', "#{root}/var/vcap/"), perm: 0o755)
      run = "#{root}/var/vcap/sys/run/bpm/#{name}"
      FileUtils.mkdir_p(run)
      call = ->(state) { Release.run(script, state, 'hash_unchanged').first.strip }
      return yield(call) unless preparation

      with_process(preparation) do |pid|
        File.write("#{run}/#{name}.pid", pid)
        yield(call, pid, run)
      end
    end
  end

  def with_process(preparation)
    reader, writer = IO.pipe
    pid = Process.spawn('bash', '-c', "#{preparation}\necho ready\nexec sleep 60", out: writer)
    writer.close
    assert_equal "ready\n", reader.gets
    yield pid
  ensure
    reader&.close
    end_process(pid)
  end

  def end_process(pid)
    Process.kill('KILL', pid)
    Process.wait(pid)
  rescue Errno::ESRCH, Errno::ECHILD
    nil # it has ended
  end
end
